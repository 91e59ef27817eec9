"""The verb `profile`; see `verbs` for the pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refdiff.cli.app import Backend, Expect, Json, Memory, Mode, Overwrite, Threads, Variant, verb
from refdiff.cli.terminal import end, note, note_backend, print_answer, working


@verb()
def profile(
    bundle: Annotated[
        str | None, typer.Argument(metavar="[BUNDLE]", help='The bundle\'s folder, or "mini".')
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="Your own image; the miniature's scenes if left out.")
    ] = None,
    phrase: Annotated[str | None, typer.Option(help="Phrase for that image.")] = None,
    scenes: Annotated[int | None, typer.Option(min=1, help="Number of scenes; 3 if left out.")] = None,
    runs: Annotated[int, typer.Option(help="Measured rounds; each runs every question once.")] = 10,
    warmup: Annotated[int, typer.Option(help="Unmeasured rounds, after the cold start.")] = 1,
    variant: Variant = "edge",
    mode: Mode = "full",
    backend: Backend = "auto",
    threads: Threads = None,
    memory: Memory = None,
    expect: Expect = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also time every layer.")] = False,
    compare_backends: Annotated[
        bool,
        typer.Option(
            "--compare-backends",
            help="Also run every graph in every available back-end (needs refdiff[profile]).",
        ),
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Also write an HTML page.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Also write every span as a Chrome trace, a timeline for ui.perfetto.dev."),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="BEFORE AFTER", help="Compare two records of `--json`; exit code 1 if AFTER is slower."
        ),
    ] = None,
    allow_different: Annotated[
        bool, typer.Option("--allow-different", help="Compare different machines, bundles or options.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure time by stage, graph and layer, or compare two such records.

    Columns: p50, p90 and p99 are percentiles, GMACs multiply-adds of a call, of peak the share of this
    machine's fastest matrix product; docs/output.md explains all.
    """
    from refdiff.contracts.bundle import open_bundle
    from refdiff.contracts.inspection import bundle_path
    from refdiff.contracts.options import BackendOptions, RunOptions
    from refdiff.profiling.profile import ProfileOptions, profile_samples
    from refdiff.profiling.profile import profile as profile_bundle
    from refdiff.profiling.records import check_outputs, save_profile
    from refdiff.profiling.tables import profile_page

    if compare is not None:
        measuring = {
            "--html": html,
            "--trace": trace,
            "--layers": layers,
            "--compare-backends": compare_backends,
            "--expect": expect,
        }
        given = [option for option, value in measuring.items() if value]
        if given:
            raise typer.BadParameter(f"{given[0]} is for a profile, --compare measures none; leave it out")
        _compare(compare, bundle, allow_different=allow_different, as_json=as_json)
        return
    if bundle is None:
        raise typer.BadParameter("name a bundle, or two records to --compare")
    check_outputs(html=html, trace=trace, overwrite=overwrite)
    with working() as progress:
        report = profile_bundle(
            bundle,
            samples=profile_samples(
                open_bundle(bundle_path(bundle), verify="size"), image=image, phrase=phrase, scenes=scenes
            ),
            measure=ProfileOptions(
                runs=runs, warmup=warmup, layers=layers, compare_backends=compare_backends
            ),
            options=RunOptions(variant=variant, mode=mode, expect=expect),
            backend=BackendOptions(name=backend, threads=threads, memory=memory),
            progress=progress,
        )
        files = save_profile(report, html=html, trace=trace, overwrite=overwrite)
    note_backend(backend, str(report.options["backend"]), report.backend_reason)
    for kind, path in files.items():
        note(f"{kind}: {path}")
    print_answer(report.to_json(), lambda: profile_page(report), as_json=as_json)


def _compare(records: tuple[Path, Path], bundle: str | None, *, allow_different: bool, as_json: bool) -> None:
    from refdiff.errors import GateError
    from refdiff.profiling.comparison import compare_profiles
    from refdiff.profiling.tables import comparison_table

    if bundle is not None:
        raise typer.BadParameter(f"--compare takes two records and no bundle, got {bundle}; leave it out")
    compared = compare_profiles(*records, allow_different=allow_different)
    print_answer(compared.to_json(), lambda: comparison_table(compared), as_json=as_json)
    try:
        compared.require()
    except GateError as error:
        end(str(error), error.exit_code)
