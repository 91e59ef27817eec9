"""Does TensorRT-RTX's parser and builder take every graph of a bundle? No GPU is needed to ask.

    python benchmarks/rtx_builds.py BUNDLE [--graphs unet …]      (with tensorrt-rtx installed beside refdiff)
    python benchmarks/rtx_builds.py BUNDLE --converted KEPT/ours-int8 --precision int8

KEPT is what full_size_precision.py --keep left: graphs converted one by one from the fp32 bundle. Shapes are
those of the golden record. Adds to an entry of results/rtx-builds.json.
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
    parser.add_argument("--converted", type=Path, help="a folder of graphs to build in place of the bundle's")
    parser.add_argument("--precision", help="of these graphs")
    given = parser.parse_args()
    bundle = open_bundle(given.bundle, verify="size")
    golden, graphs = bundle.golden(), {}
    found = bundle.manifest.graphs
    if given.converted:
        found = [path.stem for path in sorted(given.converted.glob("*.onnx"))]
    for name in given.graphs or list(found):
        shapes = {tensor: array.shape for tensor, array in golden[name][0].items()}
        precision = given.precision or bundle.manifest.graphs[name].precision
        path = given.converted / f"{name}.onnx" if given.converted else bundle.graph_path(name)
        graphs[name] = {"precision": precision, **build(path, shapes)}
        print(name, graphs[name], flush=True)  # noqa: T201 - what a benchmark is for
    precision = given.precision or bundle.manifest.precision
    size = f"{bundle.spec.name} {bundle.spec.diffusion.image_size} {precision}"
    add_entry(RECORD, size, {"tensorrt_rtx": VERSION, "graphs": graphs})


if __name__ == "__main__":
    main()
