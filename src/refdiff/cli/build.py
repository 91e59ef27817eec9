"""What people read of a build and of a lint; see `tables`.

The verb `build`; see `verbs` for the pattern.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.cli.app import BundleName, Json, app
from refdiff.cli.output import note, print_answer, working
from refdiff.cli.tables import _group, _size, _table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from refdiff.engines.build import BuildReport
    from refdiff.engines.lint import LintReport
    from refdiff.engines.trt.attention_blocks import AttentionBlock


def of_build(report: BuildReport, *, fusion: bool = False) -> RenderableType:
    """One row per plan, and under it where they are; with `fusion` one row per attention as well."""
    table = _table("=graph", "precision", ">plan", ">activations", ">fused", ">seconds", "", "=key")
    for built in report.graphs:
        side_car = built.side_car
        activations = side_car.activation_bytes
        table.add_row(
            side_car.identity.graph,
            side_car.identity.precision,
            _size(side_car.plan_bytes),
            "–" if activations is None else _size(activations),
            _fused(side_car.attention),
            f"{side_car.seconds:.1f}",
            "kept" if built.reused else "built",
            side_car.identity.key[:12],
        )
    folders = sorted({str(built.plan.parent) for built in report.graphs})
    return _group(
        f"{report.bundle}   {report.flavour} {report.version} ({report.reason}), for "
        f"{', '.join(report.targets)}; GPU here: {report.device or 'none'}",
        table,
        *(
            [_of_attention((g.side_car.identity.graph, g.side_car.attention) for g in report.graphs)]
            if fusion
            else []
        ),
        *(f"plans, side-cars and build logs: {folder}" for folder in folders),
    )


def of_lint(report: LintReport, *, fusion: bool = False) -> RenderableType:
    """One row per complaint and risk, and one for a graph without; with `fusion` one row per attention."""
    table = _table("=graph", "precision", ">layers", "verdict", "where", "why")
    for graph in report.graphs:
        head = (graph.graph, graph.precision, str(graph.layers))
        rows = [
            *(
                ("REFUSED", f"{each.node} {each.operator}", f"{each.reason}; {each.cure}")
                for each in graph.refusals
            ),
            *((each.rule, each.layer, each.because) for each in graph.findings),
        ] or [("ok", "", "")]
        for number, row in enumerate(rows):
            table.add_row(*(("", "", "") if number else head), *row)
    verdict = "the parser takes every graph" if report.passed else "REFUSED"
    return _group(
        f"{report.bundle}   {report.flavour} {report.version} ({report.reason})",
        table,
        *([_of_attention((graph.graph, graph.attention) for graph in report.graphs)] if fusion else []),
        verdict,
    )


def _of_attention(graphs: Iterable[tuple[str, tuple[AttentionBlock, ...]]]) -> RenderableType:
    """One row per attention: whether one kernel computes it."""
    table = _table("=graph", "=softmax", "fused", "why not")
    for name, blocks in graphs:
        for number, block in enumerate(blocks):
            table.add_row(
                "" if number else name,
                block.softmax,
                _verdict(block),
                "; ".join(block.obstacles) or ("TensorRT's own choice" if block.fused is False else ""),
            )
    return table


def _verdict(block: AttentionBlock) -> str:
    if block.fused is None:
        return "cannot be" if block.obstacles else "can be"
    return "yes" if block.fused else "NO"


def _fused(blocks: tuple[AttentionBlock, ...]) -> str:
    """How many attentions of a plan are fused, of how many."""
    if not blocks or any(block.fused is None for block in blocks):
        return "?" if blocks else "–"
    return f"{sum(bool(block.fused) for block in blocks)} of {len(blocks)}"


@app.command()
def build(
    bundle: BundleName,
    flavour: Annotated[str, typer.Option(help="tensorrt, tensorrt-rtx or auto.")] = "auto",
    graph: Annotated[list[str] | None, typer.Option(help="Repeatable; all if left out.")] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Whose sizes the plans serve: edge, official; repeatable, edge if left out."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="In px, to be sure of it: a bundle has one, fixed by `refdiff export --size`."),
    ] = None,
    compute_capability: Annotated[
        str | None,
        typer.Option(help="GPUs to build for, such as 8.6,8.9 (tensorrt-rtx); Ampere and later if left out."),
    ] = None,
    workspace: Annotated[
        str | None, typer.Option(help="Most memory of one layer, such as 4GB; the device's if left out.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="Measured kernels, read and written (tensorrt).")
    ] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Weights can be exchanged in the plan.")] = False,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave the weights out of the plan; refit when loading.")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="For later versions, too (tensorrt).")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="For all GPUs from Ampere on (tensorrt).")
    ] = False,
    lint: Annotated[bool, typer.Option("--lint", help="Parse and report only; build nothing.")] = False,
    fusion: Annotated[
        bool, typer.Option("--fusion", help="Tell of each attention whether it is fused, and why not.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Build even what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Build TensorRT plans of a bundle's graphs; what was built from exactly the same is kept.

    tensorrt builds on the GPU it builds for; tensorrt-rtx needs none. With --lint, exit code 1 if the parser
    refuses a graph.
    """
    from refdiff.engines.build import BUILT_VARIANTS
    from refdiff.engines.build import build as build_plans
    from refdiff.engines.trt.options import BuildOptions, parse_size

    if lint:
        _lint(bundle, flavour, graph or (), size=size, fusion=fusion, as_json=as_json)
        return
    options = BuildOptions(
        compute_capabilities=_listed(compute_capability),
        workspace_bytes=None if workspace is None else parse_size(workspace),
        timing_cache=timing_cache,
        refit=refit,
        strip_weights=strip_weights,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    with working() as tell:
        report = build_plans(
            bundle,
            flavour=flavour,
            graphs=graph or (),
            variants=variant or BUILT_VARIANTS,
            options=options,
            size=size,
            force=force,
            progress=tell,
        )
    print_answer(report.to_json(), lambda: of_build(report, fusion=fusion), as_json=as_json)


def _lint(
    bundle: str,
    flavour: str,
    graphs: list[str] | tuple[str, ...],
    *,
    size: int | None,
    fusion: bool,
    as_json: bool,
) -> None:
    from refdiff.engines import lint

    with working() as tell:
        report = lint.lint(bundle, flavour=flavour, graphs=graphs, size=size, progress=tell)
    print_answer(report.to_json(), lambda: of_lint(report, fusion=fusion), as_json=as_json)
    if not report.passed:
        note(f"error: {report.flavour} refuses a graph")
        raise typer.Exit(1)


def _listed(text: str | None) -> tuple[str, ...]:
    """The parts of a list with commas."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
