"""`python -m refdiff`: the command line."""

import sys

from refdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
