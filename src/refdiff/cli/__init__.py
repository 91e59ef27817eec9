"""The command line: parse, call one function of a room, print what it returns.

    app.py       the root, the options that verbs share, and how a verb is registered
    terminal.py  one JSON document or table on stdout, notes, progress and errors on stderr
    entry.py     main(): every way to end, as an exit code and at most one line
    verbs.py     demo, fetch, inspect and doctor
    export.py    export and convert
    precision.py audit, bisect, calibrate and sensitivity
    eval.py      eval and tune
    serve.py     serve and triton; every other verb has a module of its own

Tables are laid out in the module of the verb or in `tables` of its room, in the terms of `refdiff.reports`.

Exit codes: 0 good (also when no mask could be made: read `matched`), 1 a gate or some images failed, 2
misuse or bad input, 3 the environment lacks something, 70 a bug of refdiff, 130 interrupted, 128 + n ended by
signal n.
"""

from refdiff.cli.app import app
from refdiff.cli.entry import main

__all__ = ["app", "main"]
