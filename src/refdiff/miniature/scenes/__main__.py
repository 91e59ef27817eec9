"""Write scenes in the RefCOCO layout: `python -m refdiff.miniature.scenes FOLDER --count 100`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from refdiff.errors import RefdiffError
from refdiff.miniature.scenes.refcoco import write_refcoco
from refdiff.miniature.scenes.scene import HELD_OUT_FROM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description="Write rendered scenes in the RefCOCO layout.")
    parser.add_argument("folder", type=Path, help="new or empty folder")
    parser.add_argument("--count", type=int, default=100, help="number of scenes")
    parser.add_argument("--seed", type=int, default=HELD_OUT_FROM, help="seed of the first scene")
    given = parser.parse_args(arguments)
    try:
        write_refcoco(given.folder, range(given.seed, given.seed + given.count))
    except RefdiffError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
