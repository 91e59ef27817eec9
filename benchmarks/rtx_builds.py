"""Does TensorRT-RTX's parser and builder take every graph of a bundle? No GPU is needed to ask.

    python benchmarks/rtx_builds.py BUNDLE [--graphs unet …]      (with tensorrt-rtx installed beside refdiff)

Shapes are those of the golden record. Adds an entry to results/rtx-builds.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from records import RESULTS, add_entry
from rtx import VERSION, build

from refdiff.contracts.bundle import open_bundle

RECORD = RESULTS / "rtx-builds.json"


def main() -> None:
    """Build each graph and record what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--graphs", nargs="*")
    given = parser.parse_args()
    bundle = open_bundle(given.bundle, verify="size")
    golden, graphs = bundle.golden(), {}
    for name in given.graphs or list(bundle.manifest.graphs):
        shapes = {tensor: array.shape for tensor, array in golden[name][0].items()}
        record = bundle.manifest.graphs[name]
        graphs[name] = {"precision": record.precision, **build(bundle.graph_path(name), shapes)}
        print(name, graphs[name], flush=True)  # noqa: T201 - what a benchmark is for
    size = f"{bundle.spec.name} {bundle.spec.diffusion.image_size} {bundle.manifest.precision}"
    add_entry(RECORD, size, {"tensorrt_rtx": VERSION, "graphs": graphs})


if __name__ == "__main__":
    main()
