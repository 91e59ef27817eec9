"""The command line's root, and the options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refdiff import __version__

app = typer.Typer(
    help="Referring segmentation (Ref-Diff) on checked engines: a picture and a phrase in, a mask out.",
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
        help='Of the device, for plans: "8GB", or resident, shared or staged; what fits if left out.'
    ),
]
Variant = Annotated[str, typer.Option(help="edge, official or paper.")]
Mode = Annotated[str, typer.Option(help="gen, gen+seg, disc+seg or full.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; the back-end's choice if left out.")]
Feeds = Annotated[Path | None, typer.Option(help="What `refdiff calibrate` recorded.")]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="The recipe to look at; the built-in rules if left out.")
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
    """Referring segmentation (Ref-Diff) on checked engines: a picture and a phrase in, a mask out."""
