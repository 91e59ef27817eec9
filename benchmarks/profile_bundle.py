"""A bundle's profile as a record, and its page; docs/profiling.md shows the miniature's.

    .venv/bin/python -m benchmarks.profile_bundle [--html page.html]
    .venv/bin/python -m benchmarks.profile_bundle BUNDLE --image PHOTO --phrase "the wheel" --profiles edge

Adds an entry for each profile of arithmetic to results/profile.json; the layers are left out, for size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.records import RESULTS, add_entry
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import RunOptions
from refdiff.profiling import profile, records


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="mini")
    parser.add_argument("--image", type=Path, help="the miniature's scenes if left out")
    parser.add_argument("--phrase")
    parser.add_argument("--profiles", nargs="+", choices=("official", "edge"), default=("official", "edge"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--html", type=Path, help="the page of the last profile")
    parser.add_argument("--output", type=Path, default=RESULTS / "profile.json")
    given = parser.parse_args()
    for name in given.profiles:
        report = profile.profile(
            given.bundle,
            samples=profile.profile_samples(
                find_bundle(given.bundle), image=given.image, phrase=given.phrase
            ),
            options=RunOptions(variant=name),
            measure=profile.ProfileOptions(runs=given.runs, layers=name == "edge" and given.html is not None),
        )
        document = report.to_json()
        entry = {**document, "path": Path(given.bundle).name, "layers": []}
        add_entry(given.output, f"{Path(given.bundle).name}, {name}", entry)
    if given.html is not None:
        records.save_profile(report, html=given.html, overwrite=True)


if __name__ == "__main__":
    main()
