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
    Overwrite,
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
def export(
    model: Annotated[
        str, typer.Argument(help="mini, refdiff (SAM ViT-H), refdiff-vitb, or an fp32 bundle's folder.")
    ] = "mini",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The bundle's folder; MODEL-PRECISION if left out.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8 or fp8.")] = "fp32",
    recipe: Annotated[Path | None, typer.Option(help="A precision recipe to follow.")] = None,
    feeds: Annotated[
        Path | None,
        typer.Option(
            help="What `refdiff calibrate` recorded, for int8 and fp8; scenes of the miniature if left out."
        ),
    ] = None,
    ranges: Annotated[str, typer.Option(help="minmax, percentile or entropy.")] = "percentile",
    smooth: Annotated[
        float, typer.Option(min=0, max=1, help="Strength of SmoothQuant, for int8 and fp8; 0: none.")
    ] = 0.7,
    budget: Annotated[
        str | None, typer.Option(help='What eight bits may cost the task, such as "mIoU -0.5".')
    ] = None,
    untimed: Annotated[
        bool,
        typer.Option(
            "--untimed",
            help="Keep int8 and fp8 even where the GPU here is slower with them: for size, or another GPU.",
        ),
    ] = False,
    diffusion: Annotated[
        str | None, typer.Option(help="Stable Diffusion 1.x or 2.x: hub id, folder or file.")
    ] = None,
    sam: Annotated[str | None, typer.Option(help="SAM: hub id, folder or file.")] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP: hub id, folder or file.")] = None,
    size: Annotated[
        int | None, typer.Option(help="Side in px of the picture the diffusion model sees; 512 if left out.")
    ] = None,
    prediction: Annotated[
        str | None,
        typer.Option(help="epsilon or v_prediction, where the diffusion checkpoint does not say."),
    ] = None,
    clip_activation: Annotated[
        str | None, typer.Option(help="gelu or quick_gelu, where the CLIP checkpoint does not say.")
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Draw the weights instead of reading them; --diffusion sd21, --sam vit_l, --clip vit_l_14 "
            "then name architectures.",
        ),
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of random weights; 0 if left out.")] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="The folder `refdiff fetch` filled.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn torch models, or an fp32 bundle, into a bundle of checked graphs (needs refdiff[export,cpu])."""
    from refdiff.cli.inspect import bundle_section
    from refdiff.contracts.inspection import Inspection
    from refdiff.export.export import export as export_model
    from refdiff.models.choice import ModelChoice

    choice = ModelChoice(
        name=model,
        diffusion=diffusion,
        sam=sam,
        clip=clip,
        size=size,
        prediction=prediction,
        clip_activation=clip_activation,
        random_weights=random_weights,
        seed=seed,
        checkpoints=checkpoints,
        offline=offline,
    )
    folder = output or Path(f"{Path(choice.title).name}-{precision}")
    with working() as tell:
        manifest = export_model(
            choice,
            precision=precision,
            recipe=recipe,
            feeds=feeds,
            ranges=ranges,
            smoothing=smooth or None,
            budget=budget,
            timed=not untimed,
            output=folder,
            overwrite=overwrite,
            progress=tell,
        )
    if manifest.random_seed is not None:
        note("note: the weights are random; this bundle is for measuring time and memory only")
    inspection = Inspection(path=folder, manifest=manifest)
    print_answer(inspection.to_json(), lambda: bundle_section(inspection), as_json=as_json)


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
