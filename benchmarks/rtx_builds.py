"""Does TensorRT-RTX take every graph of a bundle, and what does building cost? No GPU is needed to ask.

    python benchmarks/rtx_builds.py BUNDLE [--graphs unet …]      (with tensorrt-rtx installed beside refdiff)

Each graph is built by `refdiff build` in a process of its own, at the sizes of the profile edge; the plans
stay in the bundle. Adds an entry to results/rtx-builds.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from records import RESULTS, add_entry
from watched import run_watched

from refdiff.contracts.bundle import open_bundle
from refdiff.engines.trt.flavour import load_flavour

RECORD = RESULTS / "rtx-builds.json"


def main() -> None:
    """Build each graph and record what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--graphs", nargs="*")
    given = parser.parse_args()
    bundle = open_bundle(given.bundle, verify="size")
    graphs = {}
    for name in given.graphs or list(bundle.manifest.graphs):
        graphs[name] = {"precision": bundle.manifest.graphs[name].precision, **_built(given.bundle, name)}
        print(name, graphs[name], flush=True)  # noqa: T201 - what a benchmark is for
    size = f"{bundle.spec.name} {bundle.spec.diffusion.image_size} {bundle.manifest.precision}"
    add_entry(RECORD, size, {"tensorrt_rtx": load_flavour("tensorrt-rtx").version, "graphs": graphs})


def _built(bundle: Path, graph: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "refdiff", "build", str(bundle), "--flavour", "tensorrt-rtx"]
    try:
        watched = run_watched([*command, "--graph", graph, "--force", "--json"])
    except subprocess.CalledProcessError as error:
        return {"built": False, "error": json.loads(error.stdout)["error"]["message"]}
    (built,) = json.loads(watched.stdout)["graphs"]
    kept = {key: built[key] for key in ("seconds", "plan_bytes", "activation_bytes")}
    memory = {key: getattr(watched, key) for key in ("peak_rss_bytes", "peak_private_bytes")}
    return {"built": True, **kept, **memory, "error": None}


if __name__ == "__main__":
    main()
