"""The verb `triton`; see `verbs` for the pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refdiff.cli.app import Backend, BundleName, Expect, Json, Mode, Overwrite, Threads, Variant, verb
from refdiff.cli.terminal import print_answer, working


@verb()
def triton(
    bundle: BundleName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The repository's folder.")],
    graphs: Annotated[
        bool, typer.Option("--graphs", help="Also write a model for each graph, with its TensorRT plan.")
    ] = False,
    server_version: Annotated[
        str | None,
        typer.Option(
            metavar="TAG|VERSION",
            help="Triton container, such as 25.10-trtllm-python-py3, or its TensorRT, such as 10.13.3.9.",
        ),
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option(help="The server's GPU, such as 8.6, where there are plans for several.")
    ] = None,
    bundle_at: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The bundle's path in the server; it is copied if left out."),
    ] = None,
    variant: Variant = "edge",
    mode: Mode = "full",
    backend: Backend = "auto",
    threads: Threads = None,
    allow_random_weights: Annotated[
        bool, typer.Option("--allow-random-weights", help="Write a bundle whose masks mean nothing.")
    ] = False,
    overwrite: Overwrite = False,
    expect: Expect = None,
    as_json: Json = False,
) -> None:
    """Write a bundle as a model repository of Triton Inference Server.

    The model `refdiff` runs the whole pipeline in Triton's Python backend, where refdiff has to be installed;
    docs/serving.md describes its tensors. Plans of another TensorRT than the server's are refused.
    """
    from refdiff.contracts.options import BackendOptions, RunOptions
    from refdiff.serve.triton import RepositoryOptions, repository_section, write_repository

    with working() as progress:
        report = write_repository(
            bundle,
            output,
            options=RunOptions(
                variant=variant, mode=mode, allow_random_weights=allow_random_weights, expect=expect
            ),
            backend=BackendOptions(name=backend, threads=threads),
            layout=RepositoryOptions(
                bundle_at=bundle_at,
                graphs=graphs,
                server_version=server_version,
                compute_capability=compute_capability,
                overwrite=overwrite,
            ),
            progress=progress,
        )
    print_answer(report.to_json(), lambda: repository_section(report), as_json=as_json)
