"""Memory of `official` on a photograph of 1920x1080 and of 3840x2160 px.

    .venv/bin/python -m benchmarks.large_images BUNDLE PHOTO "the left wheel" --width 1920

BUNDLE may have random weights. A command that is not done within --limit is ended, and its record says so:
all layers of CLIP take the same memory, so its peak is reached soon after it begins.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.records import RESULTS, add_entry
from benchmarks.watched import run_watched
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.inspection import bundle_path

RECORD = RESULTS / "large-images.json"


def main() -> None:
    """Resize, segment, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("photo", type=Path)
    parser.add_argument("phrase")
    parser.add_argument("--width", type=int, default=1920, help="px; the height is 9/16 of it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds")
    given = parser.parse_args()
    size = given.width, given.width * 9 // 16
    spec = open_bundle(bundle_path(given.bundle), verify="size").spec
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        Image.open(given.photo).convert("RGB").resize(size, Image.Resampling.BICUBIC).save(image)
        command = [sys.executable, "-m", "refdiff", "segment", given.bundle, str(image), given.phrase]
        command += [
            "--variant",
            "official",
            "--threads",
            str(given.threads),
            "--allow-random-weights",
            "--json",
        ]
        watched = run_watched(command, limit_s=given.limit)
    entry = {
        "size_wh": list(size),
        "photo": given.photo.name,
        "threads": given.threads,
        "finished": watched.finished,
        "seconds": round(watched.seconds, 1),
        "peak_rss_bytes": watched.peak_rss_bytes,
        "peak_private_bytes": watched.peak_private_bytes,
    }
    if watched.finished:
        answer = json.loads(watched.stdout)
        entry["cautions"] = answer["cautions"]
    add_entry(RECORD, f"{spec.name} official {size[0]}x{size[1]}", entry)


if __name__ == "__main__":
    main()
