"""Measure what each block of the miniature costs in eight bits, and what a budget keeps.

    .venv/bin/python -m benchmarks.block_costs FEEDS --count 16

FEEDS is what `refdiff calibrate mini` recorded. Writes results/block-costs.json and
docs/images/sensitivity.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.records import RESULTS, add_entry
from refdiff.calibration.sensitivity import draw_costs, sensitivity

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "sensitivity.png"


def main() -> None:
    """Measure, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("feeds", type=Path)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--precision", default="int8")
    given = parser.parse_args()
    report = sensitivity(
        "mini",
        precision=given.precision,
        feeds=given.feeds,
        count=given.count,
        progress=lambda line: print(line, file=sys.stderr),  # noqa: T201 - what a benchmark is for
    )
    add_entry(RESULTS / "block-costs.json", f"mini {given.precision}", report.to_json())
    PICTURE.write_bytes(draw_costs(report))


if __name__ == "__main__":
    main()
