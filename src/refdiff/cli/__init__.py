"""The command line: parse, call one function of a room, print what it returns.

    app.py       the root, options that verbs share; one JSON document or table on stdout, the rest on stderr
    entry.py     main(): exit codes, and errors as one line
    verbs.py     demo, fetch, inspect and doctor
    precision.py audit, bisect and sensitivity; every other verb has a module of its own

What the tables say is in the module `tables` of each verb's room, in the terms of `refdiff.reports`.

Exit codes: 0 good (also when no mask could be made: read `matched`), 1 a gate failed, 2 misuse or
bad input, 3 the environment lacks something, 130 interrupted.
"""

from refdiff.cli.app import app
from refdiff.cli.entry import main

__all__ = ["app", "main"]
