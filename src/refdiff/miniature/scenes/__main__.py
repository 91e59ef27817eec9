"""Write scenes in the RefCOCO layout: `python -m refdiff.miniature.scenes FOLDER --count 100`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from refdiff.errors import RefdiffError
from refdiff.miniature.scenes.refcoco import write_refcoco


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, write, and return the exit code."""
    parser = argparse.ArgumentParser(description="Write rendered scenes in the RefCOCO layout.")
    parser.add_argument("folder", type=Path, help="must be new or empty")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first scene")
    given = parser.parse_args(arguments)
    try:
        write_refcoco(given.folder, range(given.seed, given.seed + given.count))
    except RefdiffError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
