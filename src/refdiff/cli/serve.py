"""The verbs `serve` and `triton`; see `verbs` for the pattern."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refdiff.cli.app import Backend, BundleName, Expect, Json, Memory, Mode, Overwrite, Threads, Variant, verb
from refdiff.cli.terminal import note, print_answer, working
from refdiff.contracts.optional import require_serve

if TYPE_CHECKING:
    from refdiff.serve.replicas import ReplicaOptions


@verb()
def serve(
    bundle: BundleName,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="REFDIFF_TOKEN", help="Bearer token of every request; better in REFDIFF_TOKEN."),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let other machines in without a token.")
    ] = False,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more get 429.")] = 16,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for the answers to a request.")] = 120.0,
    max_body: Annotated[int, typer.Option(min=1, help="Megabytes of a request.")] = 32,
    cache: Annotated[int, typer.Option(min=0, help="Megabytes of encoded images to keep.")] = 512,
    grace: Annotated[float, typer.Option(min=0, help="Seconds for running answers when stopped.")] = 30.0,
    live: Annotated[int, typer.Option(min=0, help="Live sessions of the page's camera; 0: none.")] = 1,
    share: Annotated[bool, typer.Option("--share", help="Let the page share overlays.")] = False,
    label_studio_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Fetch the images of tasks from this Label Studio.")
    ] = None,
    label_studio_token: Annotated[
        str | None, typer.Option(envvar="LABEL_STUDIO_API_KEY", help="Access token of a user there.")
    ] = None,
    variant: Variant = "edge",
    mode: Mode = "full",
    backend: Backend = "auto",
    memory: Memory = None,
    threads: Threads = None,
    run_limit: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="End the process when a graph hangs for this long."),
    ] = None,
    allow_random_weights: Annotated[
        bool, typer.Option("--allow-random-weights", help="Run a bundle whose masks mean nothing.")
    ] = False,
    expect: Expect = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help='Serve from a Ray cluster: local, auto, or "host:port" (needs refdiff[serve-ray]).',
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Replicas on the cluster (1); the fewest with --max-replicas.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Replicas that Ray Serve may start where requests wait.")
    ] = None,
    cpus_per_replica: Annotated[
        float | None, typer.Option(min=0.01, help="Cores that a replica reserves (1).")
    ] = None,
    gpus_per_replica: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs that a replica reserves (1; 0 where the back-end takes none)."),
    ] = None,
    autoscaling: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="Further fields of Ray Serve's AutoscalingConfig."),
    ] = None,
) -> None:
    """Answer requests over HTTP (needs refdiff[serve]).

    POST /v1/segment takes an image and phrases; /openapi.json describes it, docs/serving.md explains it.
    The log on stderr has one JSON line per request. SIGTERM and Ctrl-C answer what was accepted, then end.
    """
    from refdiff.contracts.options import BackendOptions, RunOptions

    with require_serve("serving"):
        from refdiff.serve.replicas import serve_on_ray
        from refdiff.serve.server import ServeOptions, logging_requests
        from refdiff.serve.server import serve as serve_bundle
    where = _replicas(
        ray,
        {
            "replicas": replicas,
            "max_replicas": max_replicas,
            "cpus_per_replica": cpus_per_replica,
            "gpus_per_replica": gpus_per_replica,
            "autoscaling": autoscaling,
        },
    )
    serving = ServeOptions(
        host=host,
        port=port,
        token=token,
        no_token=no_token,
        most_waiting=queue,
        request_seconds=timeout,
        most_body_bytes=max_body << 20,
        cache_bytes=cache << 20,
        grace_seconds=grace,
        most_live=live,
        share=share,
        label_studio_url=label_studio_url,
        label_studio_token=label_studio_token,
    )
    how: dict[str, Any] = {
        "serving": serving,
        "options": RunOptions(
            variant=variant, mode=mode, allow_random_weights=allow_random_weights, expect=expect
        ),
        "backend": BackendOptions(name=backend, threads=threads, memory=memory, run_limit_s=run_limit),
        "on_ready": lambda address: note(f"serving at {address}"),
    }
    with logging_requests(), working() as progress:
        if where is None:
            serve_bundle(bundle, progress=progress, **how)
        else:
            serve_on_ray(bundle, where, progress=progress, **how)


def _replicas(address: str | None, given: Mapping[str, Any]) -> ReplicaOptions | None:
    """Return the options of the replicas from those of the command line that were given."""
    given = {name: value for name, value in given.items() if value is not None}
    if address is None:
        if given:
            option = next(iter(given)).replace("_", "-")
            raise typer.BadParameter(f"--{option} is for replicas on a Ray cluster; name it (--ray)")
        return None
    from refdiff.serve.replicas import ReplicaOptions

    fields = given.pop("autoscaling", "{}")
    try:
        autoscaling = json.loads(fields)
    except ValueError as error:
        raise typer.BadParameter(f"--autoscaling is not JSON: {error}") from error
    if not isinstance(autoscaling, dict):
        raise typer.BadParameter(f"got --autoscaling {fields}, expected a JSON object")
    return ReplicaOptions(address=address, autoscaling=autoscaling, **given)


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
