"""What people read: reports as rich tables. rich is imported when one is made, never before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from refdiff.batch.demo import DemoReport
    from refdiff.contracts.graphs import TensorSpec
    from refdiff.contracts.inspection import Inspection
    from refdiff.models.fetch import FetchReport


def of_demo(report: DemoReport) -> RenderableType:
    """One row per sample scene."""
    table = _table("=phrase", ">IoU", ">score", ">hard", ">soft", ">gen", ">place", ">ms")
    for shown in report.scenes:
        row = shown.to_json()
        parts = row["scores"] or {}
        table.add_row(
            row["phrase"],
            f"{row['iou']:.3f}",
            _number(row["score"]),
            *(_number(parts.get(name)) for name in ("hard", "soft", "generative", "place")),
            f"{row['encode_ms'] + row['segment_ms']:.0f}",
        )
    return _group(table, f"mean IoU {report.miou:.3f}   pictures: {report.sheet}")


def of_bundle(inspection: Inspection) -> RenderableType:
    """The bundle's graphs, its files, and where it comes from."""
    manifest = inspection.manifest
    graphs = _table("=graph", "precision", "inputs", "outputs", ">from torch")
    for name, graph in manifest.graphs.items():
        error = max((output.error for output in graph.parity.values()), default=None)
        row = (name, graph.precision, _tensors(graph.inputs), _tensors(graph.outputs))
        graphs.add_row(*row, "" if error is None else f"{error:.1e}")
    files = _table("file", ">size", "sha256")
    for name, file in manifest.files.items():
        files.add_row(name, _size(file.size_bytes), file.sha256[:16])
    versions = "   ".join(f"{name} {version}" for name, version in manifest.versions.items())
    sources = (
        "   ".join(f"{name} {sha256[:12]}" for name, sha256 in manifest.sources.items())
        if manifest.random_seed is None
        else f"RANDOM, seed {manifest.random_seed}: to measure time and memory, its masks mean nothing"
    )
    head = (
        f"{inspection.path}   model {manifest.spec.name}, {manifest.precision}, "
        f"{_size(inspection.size_bytes)}, format {manifest.format_version}, "
        f"written by refdiff {manifest.refdiff_version}, diffusion at {manifest.spec.diffusion.image_size} px"
    )
    return _group(head, graphs, files, f"exported with: {versions}", f"weights: {sources}")


def of_fetch(report: FetchReport) -> RenderableType:
    """One table per repository: its files, and under it what is missing and where it comes from."""
    parts: list[Any] = []
    for repo in report.repos:
        table = _table("=file", ">size", "licence", "sha256", "state")
        for row in repo.files:
            size = "–" if row.size_bytes is None else _size(row.size_bytes)
            table.add_row(row.name, size, repo.licence or "–", (row.sha256 or "–")[:16], row.state)
        at = f" at {repo.commit[:12]}" if repo.commit else ""
        parts += ["", f"{repo.wanted.repo}{at}   {repo.url()}", f"in {repo.folder}", table]
        if repo.problem and not repo.complete:
            names = [row.name for row in repo.lacking] or ["all files of the model"]
            parts += ["put there, under the same names:", *(f"  {name}" for name in names)]
    if report.to_download_bytes:
        parts.append(f"to download: {_size(report.to_download_bytes)}")
    return _group(*parts)


def _table(*columns: str, header: bool = True) -> Table:
    """A table; a column whose name starts with > is flush right, with = is never wrapped."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if header else None, show_header=header, pad_edge=False)
    for name in columns:
        table.add_column(
            name.lstrip(">="),
            justify="right" if name.startswith(">") else "left",
            no_wrap=name.startswith("="),
            overflow="fold",
        )
    return table


def _group(*parts: Any) -> RenderableType:
    from rich.console import Group

    return Group(*parts)


def _tensors(tensors: Sequence[TensorSpec]) -> str:
    return "\n".join(f"{each.name} {'×'.join(str(size) for size in each.shape)}" for each in tensors)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"
