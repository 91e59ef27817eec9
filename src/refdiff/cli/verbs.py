"""The verbs: their options, the function each calls, and what it prints.

That function's room is imported inside the verb, so that --help and misuse answer at once.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.cli.app import Backend, BundleName, Expect, Json, Mode, Threads, Variant, verb
from refdiff.cli.terminal import end, note_backend, print_answer, working
from refdiff.reports.page import Section
from refdiff.reports.table import Column, Table, numeric, size_text

if TYPE_CHECKING:
    from refdiff.contracts.graphs import TensorSpec
    from refdiff.contracts.inspection import Inspection


@verb()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the images.")] = Path("demo-out"),
    bundle: Annotated[
        str | None, typer.Option(help="One bundle of a miniature; both built-in ones if left out.")
    ] = None,
    backend: Backend = "auto",
    variant: Variant = "edge",
    mode: Mode = "full",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Segment sample scenes with the built-in models, offline.

    Columns: score is the weighted sum of hard (CLIP on the crop), soft (CLIP on the image, masked), gen (the
    heatmap inside the mask) and place (words such as "left"); docs/output.md explains all.
    IoU is the overlap with the true mask, 0..1.
    """
    from refdiff.batch import demo
    from refdiff.batch.tables import demo_table
    from refdiff.contracts.inspection import MINIATURES
    from refdiff.contracts.options import BackendOptions, RunOptions

    first, *others = MINIATURES if bundle is None else (bundle,)
    with working() as progress:
        reports = [
            demo.demo(
                folder,
                bundle=name,
                options=RunOptions(variant=variant, mode=mode),
                backend=BackendOptions(name=backend, threads=threads),
                progress=progress,
            )
            for name, folder in ((first, output), *((other, output / other) for other in others))
        ]
    shown = reports[0].scenes[0].prediction
    note_backend(backend, shown.backend, shown.backend_reason)
    document = {**reports[0].to_json(), "others": [report.to_json() for report in reports[1:]]}
    tables = tuple(map(demo_table, reports))
    print_answer(document, lambda: Section(tables=tables), as_json=as_json)


@verb()
def fetch(
    model: Annotated[
        str, typer.Argument(help="refdiff, refdiff-vitb, or owner/name or owner/name/file on the hub.")
    ],
    to: Annotated[
        Path | None, typer.Option(help="Folder to fill; the one that export reads if left out.")
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit; if left out, the one present, or else the newest."),
    ] = None,
    diffusion_weights: Annotated[
        str | None, typer.Option(help="ema or non-ema, of a model with both; non-ema of a named model.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Stay off the network; report which files are missing.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; download nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Download a model's checkpoints, verified (needs refdiff[export]).

    Exit code 3 if files are missing and could not be fetched: offline, or the hub did not answer. A
    --dry-run that the hub answered ends with 0, whatever it would download.
    """
    from refdiff.models import fetch

    with working() as progress:
        report = fetch.plan_download(
            model,
            to,
            revision=revision,
            diffusion_weights=diffusion_weights,
            offline=offline,
            progress=progress,
        )
    if report.downloads and not dry_run:
        with working():  # on stderr: what is about to happen is not the answer
            print_answer({}, lambda: fetch.fetch_section(report), as_json=False)
    if not dry_run:
        with working() as progress:
            report = fetch.download(report, progress)
    print_answer(report.to_json(), lambda: fetch.fetch_section(report), as_json=as_json)
    if report.problem is not None:
        end(report.problem, 3)


@verb()
def inspect(bundle: BundleName, expect: Expect = None, as_json: Json = False) -> None:
    """Show the contents of a bundle, after verifying every file in it.

    Columns: from torch is the largest difference from torch's outputs over their range. --verbose adds each
    file's size and hash.
    """
    from refdiff.contracts.inspection import inspect as inspect_bundle

    with working():
        inspection = inspect_bundle(bundle, expect=expect)
    print_answer(inspection.to_json(), lambda: bundle_section(inspection), as_json=as_json)


def bundle_section(inspection: Inspection) -> Section:
    """Lay out a bundle's graphs, where it comes from and what to do next; with --verbose every hash."""
    from refdiff.contracts.inspection import built_in_name

    manifest = inspection.manifest
    graphs = []
    for name, graph in manifest.graphs.items():
        error = max((output.error for output in graph.parity.values()), default=None)
        tensors = (_tensors(graph.inputs), _tensors(graph.outputs))
        graphs.append((name, graph.precision, *tensors, "" if error is None else f"{error:.1e}"))
    wrapping = (Column(name, wrap=True) for name in ("precision", "inputs", "outputs"))
    graph_columns = (Column("graph"), *wrapping, *numeric("from torch"))
    verbose = logging.getLogger("refdiff").isEnabledFor(logging.INFO)
    files = [(name, size_text(file.size_bytes), file.sha256[:16]) for name, file in manifest.files.items()]
    file_columns = (Column("file", wrap=True), *numeric("size"), Column("sha256", wrap=True))
    versions = "   ".join(f"{name} {version}" for name, version in manifest.versions.items())
    sources = (
        "   ".join(f"{name} {sha256[:12]}{sha256[64:]}" for name, sha256 in manifest.sources.items())
        if manifest.random_seed is None
        else f"RANDOM, seed {manifest.random_seed}: to measure time and memory, its masks mean nothing"
    )
    head = (
        f"{inspection.path}   model {manifest.spec.name}, {manifest.precision}, "
        f"{size_text(inspection.size_bytes)}, format {manifest.format_version}, "
        f"written by refdiff {manifest.refdiff_version}, diffusion at {manifest.spec.diffusion.image_size} px"
    )
    pin = f"sha256 {manifest.sha256} (--expect accepts this bundle only)"
    details = Table(columns=file_columns, rows=files, footnotes=(f"exported with: {versions}",))
    name = built_in_name(inspection.path) or str(inspection.path)
    allow = "" if manifest.random_seed is None else " --allow-random-weights"
    notes = (
        f"weights: {sources}",
        pin,
        f"{len(files)} files, all as the manifest lists them; --verbose shows them",
        f"bundle: {inspection.path}",
        f'next: refdiff segment {shlex.quote(name)} IMAGE "the red mug"{allow}',
    )
    graph_table = Table(columns=graph_columns, rows=graphs, footnotes=() if verbose else notes)
    end_table = replace(details, footnotes=(*details.footnotes, *notes))
    return Section(lines=(head,), tables=(graph_table, end_table) if verbose else (graph_table,))


def _tensors(tensors: Sequence[TensorSpec]) -> str:
    return "\n".join(f"{each.name} {'×'.join(str(size) for size in each.shape)}" for each in tensors)


_ENVIRONMENT = 3


@verb()
def doctor(
    bundle: Annotated[
        str | None,
        typer.Argument(
            metavar="[BUNDLE]", help='The bundle\'s folder, or "mini"; the machine alone if left out.'
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Examine this machine: what can run on it, and how to fix the rest.

    Exit code 0 with warnings too; 3 if the bundle cannot run here or, without one, if nothing can.
    """
    from refdiff.diagnostics import doctor

    with working() as progress:
        report = doctor.doctor(bundle, progress=progress)
    print_answer(report.to_json(), lambda: doctor.doctor_table(report), as_json=as_json)
    if not report.passed:
        end(report.verdict.found, _ENVIRONMENT)
