"""The command line: parse, call one function of `refdiff.api`, print what it returns.

    app.py       the root, and options that verbs share
    entry.py     main(): exit codes, and errors as one line
    verbs.py     the verbs and their options; calibrate.py, audit.py, bisect.py, sensitivity.py, build.py,
                 check.py, segment.py, profile.py and doctor.py one each
    output.py    one JSON document or one table on stdout, everything else on stderr
    *tables.py   what the tables say

Exit codes: 0 good (also when nothing in the picture matches: read `matched`), 1 a gate failed, 2 misuse or
bad input, 3 the environment lacks something, 130 interrupted.
"""

from refdiff.cli.app import app
from refdiff.cli.entry import main

__all__ = ["app", "main"]
