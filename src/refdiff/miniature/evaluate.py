"""Alias of `refdiff eval mini`: `python -m refdiff.miniature.evaluate --count 500 --backend torch --json`.

Its `--backend torch|onnx` is the verb's `--runtime`, and its `--bundle` the verb's argument.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from refdiff.cli import main as refdiff


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `refdiff eval` and return its exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--backend", default="onnx")
    parser.add_argument("--bundle", default="mini")
    given, others = parser.parse_known_args(arguments)
    return refdiff(["eval", given.bundle, "--runtime", given.backend, *others])


if __name__ == "__main__":
    sys.exit(main())
