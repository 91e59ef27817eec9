"""The verbs: their options, the function each calls, and what it prints.

That function's room is imported inside the verb, so that --help and misuse answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refdiff.cli.app import (
    Backend,
    Json,
    Mode,
    Threads,
    Variant,
    app,
)
from refdiff.cli.output import note, note_backend, print_answer, working


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path(
        "demo-out"
    ),
    bundle: Annotated[str, typer.Option(help="A bundle of the miniature.")] = "mini",
    backend: Backend = "auto",
    variant: Variant = "edge",
    mode: Mode = "full",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """See it work, offline: segment sample scenes with the built-in models."""
    from refdiff.batch import demo
    from refdiff.batch.tables import demo_table
    from refdiff.contracts.options import BackendOptions, RunOptions

    with working() as tell:
        report = demo.demo(
            output,
            bundle=bundle,
            options=RunOptions(variant=variant, mode=mode),
            backend=BackendOptions(name=backend, threads=threads),
            progress=tell,
        )
    shown = report.scenes[0].prediction
    note_backend(backend, shown.backend, shown.backend_reason)
    print_answer(report.to_json(), lambda: demo_table(report), as_json=as_json)


@app.command()
def fetch(
    model: Annotated[
        str, typer.Argument(help="refdiff, refdiff-vitb, or owner/name or owner/name/file on the hub.")
    ],
    to: Annotated[
        Path | None, typer.Option(help="Folder to fill; left out, the one that export looks into.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; left out, what is there, or the newest.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Touch no network; say which files are missing.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Download nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Download a model's checkpoints, verified (needs refdiff[export]).

    Exit code 3 if files are missing and could not be fetched: offline, or without an answer of the hub. A
    --dry-run that the hub answered ends with 0, whatever it would download: the plan was shown.
    """
    from refdiff.models import fetch

    with working() as tell:
        report = fetch.plan_download(model, to, revision=revision, offline=offline, progress=tell)
    if report.downloads and not dry_run:
        with working():  # on stderr: what is about to happen is not the answer
            print_answer({}, lambda: fetch.fetch_section(report), as_json=False)
    if not dry_run:
        with working() as tell:
            report = fetch.download(report, tell)
    print_answer(report.to_json(), lambda: fetch.fetch_section(report), as_json=as_json)
    if report.problem is not None:
        note(f"error: {report.problem}")
        raise typer.Exit(3)
