"""The miniature's torch modules as exported programs, for a machine without the libraries they are made with.

    .venv/bin/python -m benchmarks.gpu_programs FOLDER       (with the torch that will load them)

One file for each graph, at the shapes of the golden record; gpu.py takes the folder with --programs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from refdiff.contracts.inspection import find_bundle
from refdiff.export.wrappers import wrap
from refdiff.miniature.stack import load_miniature


def main() -> None:
    """Export each graph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    stack = load_miniature()
    for graph, (feeds, _) in find_bundle("mini").golden().items():
        inputs = tuple(torch.tensor(array) for array in feeds.values())
        program = torch.export.export(wrap(stack, graph), inputs, strict=False)
        torch.export.save(program, given.folder / f"{graph}.pt2")
        print(graph, (given.folder / f"{graph}.pt2").stat().st_size, flush=True)  # noqa: T201 - a benchmark


if __name__ == "__main__":
    main()
