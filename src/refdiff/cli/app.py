"""The command line's root, the options that several verbs share, and where each kind of output goes."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refdiff import __version__

if TYPE_CHECKING:
    from refdiff.reports import Printable

app = typer.Typer(
    help="Find the mask of what a phrase names in an image: Ref-Diff on checked engines.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: it appears in a fifth of the time
    pretty_exceptions_enable=False,  # an unexpected error shows Python's own traceback
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
BundleName = Annotated[str, typer.Argument(metavar="BUNDLE", help='The bundle\'s folder, or "mini".')]
Backend = Annotated[
    str,
    typer.Option(
        help="auto, ort-cpu, ort-cuda, ort-tensorrt, ort-rounded, or, for plans, tensorrt or tensorrt-rtx."
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        help='Device memory for plans, such as "8GB", or resident, shared or staged; what fits if left out.'
    ),
]
Variant = Annotated[str, typer.Option(help="edge, official or paper.")]
Mode = Annotated[str, typer.Option(help="gen, gen+seg, disc+seg or full.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; the back-end's choice if left out.")]
Feeds = Annotated[Path | None, typer.Option(help="Feeds that `refdiff calibrate` recorded.")]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="A precision recipe; the built-in rules if left out.")
]
Half = Annotated[str, typer.Option(help="fp16 or bf16, where no recipe is named.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"refdiff {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Find the mask of what a phrase names in an image: Ref-Diff on checked engines."""


_LOG_WIDTH = 120
"""Columns of a table that goes to a file or a pipe, which have no width of their own."""


@contextlib.contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows progress, and keep stdout clean while a verb works.

    On a terminal the line replaces itself; in a log every line stays.
    """
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints is not part of the answer
        if not sys.stderr.isatty():
            yield note
            return
        from rich.console import Console  # costs more than parsing does, and --help needs none of it

        with Console(stderr=True).status("starting") as status:
            yield lambda line: status.update(line.replace("[", r"\["))


def note_backend(asked: str, chosen: str, reason: str) -> None:
    """Print on stderr which back-end `--backend auto` chose, and why."""
    if asked == "auto":
        note(f"back-end {chosen}: {reason}")


def note(line: str) -> None:
    """Print one line on stderr, apart from the answer."""
    typer.echo(line, err=True)


def print_answer(document: dict[str, Any], layout: Callable[[], Printable], *, as_json: bool) -> None:
    """Print what a verb answers on stdout: its document, or the same laid out for a reader.

    Args:
        document: JSON-ready.
        layout: makes the table or page; called without --json only.
        as_json: print the document.
    """
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
        return
    from rich.console import Console  # costs more than parsing does, and --help needs none of it

    # markup and emoji off: a phrase or a path may hold brackets and colons.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, highlight=False, width=_LOG_WIDTH)
    console.print(layout().to_rich())


def print_error(error: Exception | str, *, as_json: bool, code: int) -> None:
    """Print one line on stderr and, with --json, one document on stdout."""
    describe = getattr(error, "format_message", None)  # click's errors say more this way than through str()
    text = " ".join(str(describe() if describe else error).split())
    if as_json:
        kind = "Interrupted" if isinstance(error, str) else type(error).__name__
        typer.echo(json.dumps({"error": {"kind": kind, "message": text, "exit_code": code}}))
    typer.echo(f"error: {text}", err=True)
