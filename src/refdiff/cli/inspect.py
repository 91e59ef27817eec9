"""The verb `inspect`; see `verbs` for the pattern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from refdiff.cli.app import BundleName, Json, app
from refdiff.cli.output import print_answer, working
from refdiff.reports import Column, Section, Table, numeric, size_text

if TYPE_CHECKING:
    from refdiff.contracts.graphs import TensorSpec
    from refdiff.contracts.inspection import Inspection


@app.command()
def inspect(bundle: BundleName, as_json: Json = False) -> None:
    """Say what a bundle is, after verifying every file in it."""
    from refdiff.contracts.inspection import inspect as inspect_bundle

    with working():
        inspection = inspect_bundle(bundle)
    print_answer(inspection.to_json(), lambda: bundle_section(inspection), as_json=as_json)


def bundle_section(inspection: Inspection) -> Section:
    """Lay out a bundle's graphs, its files, and where it comes from."""
    manifest = inspection.manifest
    graphs = []
    for name, graph in manifest.graphs.items():
        error = max((output.error for output in graph.parity.values()), default=None)
        tensors = (_tensors(graph.inputs), _tensors(graph.outputs))
        graphs.append((name, graph.precision, *tensors, "" if error is None else f"{error:.1e}"))
    wrapping = (Column(name, wrap=True) for name in ("precision", "inputs", "outputs"))
    graph_columns = (Column("graph"), *wrapping, *numeric("from torch"))
    files = [(name, size_text(file.size_bytes), file.sha256[:16]) for name, file in manifest.files.items()]
    file_columns = (Column("file", wrap=True), *numeric("size"), Column("sha256", wrap=True))
    versions = "   ".join(f"{name} {version}" for name, version in manifest.versions.items())
    sources = (
        "   ".join(f"{name} {sha256[:12]}" for name, sha256 in manifest.sources.items())
        if manifest.random_seed is None
        else f"RANDOM, seed {manifest.random_seed}: to measure time and memory, its masks mean nothing"
    )
    head = (
        f"{inspection.path}   model {manifest.spec.name}, {manifest.precision}, "
        f"{size_text(inspection.size_bytes)}, format {manifest.format_version}, "
        f"written by refdiff {manifest.refdiff_version}, diffusion at {manifest.spec.diffusion.image_size} px"
    )
    notes = (f"exported with: {versions}", f"weights: {sources}")
    return Section(
        lines=(head,),
        tables=(
            Table(columns=graph_columns, rows=graphs),
            Table(columns=file_columns, rows=files, footnotes=notes),
        ),
    )


def _tensors(tensors: Sequence[TensorSpec]) -> str:
    return "\n".join(f"{each.name} {'×'.join(str(size) for size in each.shape)}" for each in tensors)
