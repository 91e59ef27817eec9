"""The verb `eval`; see `verbs` for the pattern."""

from __future__ import annotations

from typing import Annotated

import typer

from refdiff.cli.app import Backend, BundleName, Json, Mode, Variant, choice, verb
from refdiff.cli.terminal import note_backend, print_answer, working


@verb("eval")
def evaluate(
    bundle: BundleName,
    count: Annotated[int, typer.Option(help="Number of rendered scenes, one phrase each.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first scene.")] = 1_000_000,
    runtime: Annotated[str, choice("onnx, or torch for the reference of the miniature.")] = "onnx",
    backend: Backend = "auto",
    variant: Variant = "edge",
    mode: Mode = "full",
    jobs: Annotated[int, typer.Option(help="Number of processes.")] = 1,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a bundle, or of the torch reference, on held-out rendered scenes."""
    from refdiff.contracts.options import BackendOptions, RunOptions
    from refdiff.data.synthetic import RenderedScenes
    from refdiff.evaluation import evaluate
    from refdiff.evaluation.evaluate import evaluation_table

    with working() as progress:
        report = evaluate.evaluate(
            bundle,
            RenderedScenes(count=count, seed=seed),
            runtime=runtime,
            options=RunOptions(variant=variant, mode=mode),
            backend=BackendOptions(name=backend),
            jobs=jobs,
            progress=progress,
        )
    if report.backend is not None and report.backend_reason is not None:
        note_backend(backend, report.backend, report.backend_reason)
    print_answer(report.to_json(), lambda: evaluation_table(report), as_json=as_json)
