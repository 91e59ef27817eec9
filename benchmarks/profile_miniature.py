"""The miniature's profile as a record, and its page, which docs/profiling.md shows.

    .venv/bin/python benchmarks/profile_miniature.py [--html page.html]

Adds an entry for each profile of arithmetic to results/profile.json; the layers are left out, for size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from records import RESULTS, add_entry

from refdiff import api


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--html", type=Path, help="the page of `edge`")
    parser.add_argument("--output", type=Path, default=RESULTS / "profile.json")
    given = parser.parse_args()
    for name in ("official", "edge"):
        report = api.profile("mini", profile=name, runs=given.runs, layers=name == "edge")
        add_entry(given.output, f"miniature, {name}", {**report.to_json(), "path": "mini", "layers": []})
    if given.html is not None:
        api.save_profile(report, html=given.html, overwrite=True)


if __name__ == "__main__":
    main()
