"""Time, memory and exactness of a full-size export with random weights.

    .venv/bin/python -m benchmarks.full_size_export refdiff-vitb --size 512 --output BUNDLE --twice

Runs the command a user would run, as a child, and adds an entry to results/full-size-export.json. With
--twice a second export is made and its files compared with the first one's, hash by hash.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, add_entry
from benchmarks.watched import run_watched

RECORD = RESULTS / "full-size-export.json"


def main() -> None:
    """Export, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="where the bundle stays")
    parser.add_argument("--twice", action="store_true", help="export again, and compare the hashes")
    given = parser.parse_args()
    entry = export(given.model, given.size, given.seed, given.output)
    if given.twice:
        again = given.output.with_name(f"{given.output.name}-again")
        try:
            second = export(given.model, given.size, given.seed, again)
        finally:
            shutil.rmtree(again, ignore_errors=True)
        entry["second_export_has_the_same_hashes"] = entry["files"] == second["files"]
    add_entry(RECORD, f"{given.model} {given.size}", entry)


def export(model: str, size: int, seed: int, output: Path) -> dict[str, Any]:
    """Run one export as a child process."""
    command = [
        *(sys.executable, "-m", "refdiff", "export", model, "--precision", "fp32", "--random-weights"),
        *("--size", str(size), "--seed", str(seed), "--output", str(output), "--overwrite", "--json"),
    ]
    watched = run_watched(command)
    document = json.loads(watched.stdout)
    written = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return {
        "command": f"refdiff export {model} --precision fp32 --random-weights --size {size} --seed {seed}",
        "seconds": round(watched.seconds, 1),
        "peak_rss_bytes": watched.peak_rss_bytes,
        "peak_private_bytes": watched.peak_private_bytes,
        "written_bytes": written,
        "parity": {name: graph["parity"] for name, graph in document["graphs"].items()},
        "files": {name: file["sha256"] for name, file in document["files"].items()},
    }


if __name__ == "__main__":
    main()
