"""The command line's root, the options that several verbs share, and how a verb is registered."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from refdiff import __version__
from refdiff.cli.terminal import logging_to_stderr

app = typer.Typer(
    help="Find the mask of what a phrase names in an image: Ref-Diff on checked engines.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain help: it appears in a fifth of the time
    pretty_exceptions_enable=False,  # the entry reports unexpected errors
)


def choice(help_text: str, *flags: str) -> Any:
    """Declare an option whose value is a name; capitals are accepted."""
    return typer.Option(*flags, help=help_text, callback=_lowercase)


def _lowercase(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_lowercase(each) for each in value]
    return value.lower() if isinstance(value, str) else value


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
BundleName = Annotated[str, typer.Argument(metavar="BUNDLE", help='The bundle\'s folder, or "mini".')]
Expect = Annotated[
    str | None,
    typer.Option(metavar="SHA256", help="Refuse any bundle but this one; refdiff inspect prints its hash."),
]
Backend = Annotated[
    str,
    choice(
        "auto, ort-cpu, ort-cuda, ort-tensorrt, ort-rtx, ort-rounded, or, for plans, "
        "tensorrt or tensorrt-rtx."
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        help='Device memory for plans, such as "8GB", or resident, shared or staged; what fits if left out.'
    ),
]
Variant = Annotated[str, choice("edge, official or paper.")]
MinArea = Annotated[
    int,
    typer.Option(
        "--min-area",
        metavar="PX",
        min=0,
        help="Drop candidates of this area or less; the release has 10000 for RefCOCO and RefCOCO+.",
    ),
]
Mode = Annotated[str, choice("gen, gen+seg, disc+seg or full.")]
Tuned = Annotated[
    Path | None, typer.Option("--options", metavar="FILE", help="Options that `refdiff tune` wrote.")
]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads, up to the cores; by default the back-end's choice.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help='Spread images over a Ray cluster: local, auto, or "host:port" (docs/evaluation.md).',
    ),
]
Feeds = Annotated[Path | None, typer.Option(help="Feeds that `refdiff calibrate` recorded.")]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="A precision recipe; the built-in rules if left out.")
]
Half = Annotated[str, choice("fp16 or bf16, where no recipe is named.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]

_LOG_OPTIONS = {
    "verbose": Annotated[
        bool, typer.Option("--verbose", "-v", help="Log on stderr what is read, run and written.")
    ],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print no notes and no progress.")],
    "debug": Annotated[
        bool, typer.Option("--debug", help="Log everything; show the traceback of an unexpected error.")
    ],
}
"""Options that every verb has."""


def verb(name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a verb, with the options of the log."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*, verbose: bool = False, quiet: bool = False, debug: bool = False, **given: Any) -> None:
            with logging_to_stderr(_level(verbose=verbose, quiet=quiet, debug=debug)):
                function(**given)

        signature = inspect.signature(function, eval_str=True)
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
            for name, annotation in _LOG_OPTIONS.items()
        ]
        vars(run)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *added])
        run.__annotations__ = {**function.__annotations__, **_LOG_OPTIONS}
        app.command(name or function.__name__)(run)
        return run

    return register


def _level(*, verbose: bool, quiet: bool, debug: bool) -> int:
    if debug:
        return logging.DEBUG
    if verbose:
        return logging.INFO
    return logging.ERROR if quiet else logging.WARNING


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
