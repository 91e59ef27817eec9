"""The verb `serve`; see `verbs` for the pattern."""

from __future__ import annotations

from typing import Annotated

import typer

from refdiff.cli.app import Backend, BundleName, Expect, Memory, Mode, Threads, Variant, verb
from refdiff.cli.terminal import note, working
from refdiff.contracts.optional import require_serve


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
) -> None:
    """Answer requests over HTTP (needs refdiff[serve]).

    POST /v1/segment takes an image and phrases; /openapi.json describes it, docs/serving.md explains it.
    The log on stderr has one JSON line per request. SIGTERM and Ctrl-C answer what was accepted, then end.
    """
    import logging

    from refdiff.contracts.options import BackendOptions, RunOptions

    with require_serve("serving"):
        from refdiff.serve.server import ServeOptions
        from refdiff.serve.server import serve as serve_bundle
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of each malformed request
    log = logging.getLogger("refdiff.serve")
    log.setLevel(logging.INFO)
    log.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    with working() as progress:
        serve_bundle(
            bundle,
            serving=ServeOptions(
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
            ),
            options=RunOptions(
                variant=variant, mode=mode, allow_random_weights=allow_random_weights, expect=expect
            ),
            backend=BackendOptions(name=backend, threads=threads, memory=memory, run_limit_s=run_limit),
            progress=progress,
            on_ready=lambda address: note(f"serving at {address}"),
        )
