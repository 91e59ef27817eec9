"""The verb `build`, and the tables of builds and lints; see `verbs` for the pattern."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.cli.app import BundleName, Expect, Json, choice, verb
from refdiff.cli.terminal import end, print_answer, working
from refdiff.reports.page import Section
from refdiff.reports.table import Cell, Column, Table, numeric, size_text

if TYPE_CHECKING:
    from refdiff.engines.build import BuildReport
    from refdiff.engines.lint import LintReport
    from refdiff.engines.trt.attention_blocks import AttentionBlock


@verb()
def build(
    bundle: BundleName,
    flavour: Annotated[str, choice("tensorrt, tensorrt-rtx or auto; or ort-cuda, see above.")] = "auto",
    graph: Annotated[list[str] | None, choice("A graph to build; repeatable, all if left out.")] = None,
    variant: Annotated[
        list[str] | None,
        choice("edge or official, whose sizes the plans serve; repeatable, edge if left out."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Side in px to expect; a bundle has one, fixed by `refdiff export --size`."),
    ] = None,
    compute_capability: Annotated[
        str | None,
        typer.Option(help="GPUs to build for, such as 8.6,8.9 (tensorrt-rtx); Ampere and later if left out."),
    ] = None,
    workspace: Annotated[
        str | None,
        typer.Option(help="Largest workspace of one layer, such as 4GB; the device's if left out."),
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File of measured kernels, read and written (tensorrt).")
    ] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Allow new weights in the plan.")] = False,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave the weights out of the plan; refit when loading.")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Let later versions of TensorRT load it (tensorrt).")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Let all GPUs from Ampere on load it (tensorrt).")
    ] = False,
    attention_op: Annotated[
        bool,
        typer.Option(
            "--attention-op",
            help="Build attentions as one operator: one that is not fused is an error (TensorRT 10.14).",
        ),
    ] = False,
    lint: Annotated[bool, typer.Option("--lint", help="Parse and report only; build nothing.")] = False,
    fusion: Annotated[
        bool, typer.Option("--fusion", help="Report whether each attention is fused, and why not.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Rebuild existing plans.")] = False,
    trust_plans: Annotated[
        bool,
        typer.Option("--trust-plans", help="Accept plans that came with the bundle; a plan is code."),
    ] = False,
    expect: Expect = None,
    as_json: Json = False,
) -> None:
    """Build TensorRT plans of a bundle's graphs; what was built from exactly the same is kept.

    tensorrt builds on the GPU it builds for; tensorrt-rtx needs none. With --lint, exit code 1 if the parser
    refuses a graph. ort-cuda makes the forms of the graphs that the back-end ort-cuda runs; that needs the
    extra export, and no GPU.

    Columns: plan is the plan's size, activations the memory it needs while it runs, fused the number of
    attentions that one kernel computes, of how many (– without any, ? if unknown), key the start of the hash
    of everything the plan was built from. With --lint: layers as TensorRT counts them; the verdict is ok,
    REFUSED or the name of a rule about a risk, of the layer under where. With --fusion: softmax is the node
    of each attention, and why not names the nodes that prevent fusing it.
    """
    from refdiff.engines.build import BUILT_VARIANTS
    from refdiff.engines.build import build as build_plans
    from refdiff.engines.memory_plan import parse_size
    from refdiff.engines.trt.options import BuildOptions

    if lint:
        _lint(
            bundle,
            flavour,
            graph or (),
            size=size,
            attention_op=attention_op,
            expect=expect,
            fusion=fusion,
            as_json=as_json,
        )
        return
    options = BuildOptions(
        compute_capabilities=_listed(compute_capability),
        workspace_bytes=None if workspace is None else parse_size(workspace),
        timing_cache=timing_cache,
        refit=refit,
        strip_weights=strip_weights,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        attention_op=attention_op,
        trust_plans=trust_plans,
        expect=expect,
    )
    with working() as progress:
        report = build_plans(
            bundle,
            flavour=flavour,
            graphs=graph or (),
            variants=variant or BUILT_VARIANTS,
            options=options,
            size=size,
            force=force,
            progress=progress,
        )
    print_answer(report.to_json(), lambda: build_section(report, fusion=fusion), as_json=as_json)


def _lint(
    bundle: str,
    flavour: str,
    graphs: list[str] | tuple[str, ...],
    *,
    size: int | None,
    attention_op: bool,
    expect: str | None,
    fusion: bool,
    as_json: bool,
) -> None:
    from refdiff.engines import lint

    with working() as progress:
        report = lint.lint(
            bundle,
            flavour=flavour,
            graphs=graphs,
            size=size,
            attention_op=attention_op,
            expect=expect,
            progress=progress,
        )
    print_answer(report.to_json(), lambda: lint_section(report, fusion=fusion), as_json=as_json)
    if not report.passed:
        end(f"{report.flavour} refuses a graph", 1)


def _listed(text: str | None) -> tuple[str, ...]:
    """Split a comma-separated list into its parts."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def build_section(report: BuildReport, *, fusion: bool = False) -> Section:
    """Lay out one row per plan, and where the plans are; with `fusion` one row per attention as well."""
    rows = []
    for built in report.graphs:
        metadata = built.metadata
        activations = metadata.activation_bytes
        rows.append(
            (
                metadata.identity.graph,
                metadata.identity.precision,
                size_text(metadata.plan_bytes),
                "–" if activations is None else size_text(activations),
                _fused(metadata.attention),
                f"{metadata.seconds:.1f}",
                "kept" if built.reused else "built",
                metadata.identity.key[:12],
            )
        )
    columns = (
        *(Column("graph"), Column("precision"), *numeric("plan", "activations")),
        *(*numeric("fused", "seconds", optional=1), Column(), Column("key", optional=2)),
    )
    folders = sorted({str(built.plan.parent) for built in report.graphs})
    places = [f"plans, metadata and build logs: {folder}" for folder in folders]
    attention = [(built.metadata.identity.graph, built.metadata.attention) for built in report.graphs]
    plans = Table(columns=columns, rows=rows, footnotes=places)
    line = (
        f"{report.bundle}   {report.flavour} {report.version} ({report.reason}), for "
        f"{', '.join(report.targets)}; GPU here: {report.device or 'none'}"
    )
    return Section(lines=(line,), tables=(plans, _attention(attention)) if fusion else (plans,))


def lint_section(report: LintReport, *, fusion: bool = False) -> Section:
    """Lay out one row per refusal and risk, and one for a graph without; with `fusion` one per attention."""
    rows: list[tuple[Cell | str, ...]] = []
    for graph in report.graphs:
        head = (graph.graph, graph.precision, str(graph.layers))
        found: list[tuple[Cell | str, ...]] = [
            (Cell("REFUSED", "bad"), f"{each.node} {each.operator}", f"{each.reason}; {each.cure}")
            for each in graph.refusals
        ]
        found += [(each.rule, each.layer, each.because) for each in graph.findings]
        rows += [(*head, *row) for row in found or [(Cell("ok", "good"), "", "")]]
    columns = (
        *(Column("graph", grouped=True), Column("precision", grouped=True, optional=1)),
        *(Column("layers", numeric=True, grouped=True, optional=2), Column("verdict", wrap=True)),
        *(Column("where", wrap=True), Column("why", wrap=True)),
    )
    verdict = "the parser takes every graph" if report.passed else "REFUSED"
    attention = _attention((graph.graph, graph.attention) for graph in report.graphs)
    line = f"{report.bundle}   {report.flavour} {report.version} ({report.reason})"
    graphs = Table(columns=columns, rows=rows, footnotes=(verdict,))
    return Section(lines=(line,), tables=(graphs, attention) if fusion else (graphs,))


def _attention(graphs: Iterable[tuple[str, Sequence[AttentionBlock]]]) -> Table:
    """Lay out one row per attention: whether one kernel computes it."""
    return Table(
        columns=(
            *(Column("graph", grouped=True), Column("softmax", wrap=True)),
            *(Column("fused"), Column("why not", wrap=True)),
        ),
        rows=[
            (
                name,
                block.softmax,
                _fusion_verdict(block),
                "; ".join(block.obstacles) or ("TensorRT's own choice" if block.fused is False else ""),
            )
            for name, blocks in graphs
            for block in blocks
        ],
    )


def _fusion_verdict(block: AttentionBlock) -> Cell:
    if block.fused is None:
        return Cell("cannot be", "bad") if block.obstacles else Cell("can be")
    return Cell("yes", "good") if block.fused else Cell("NO", "bad")


def _fused(blocks: Sequence[AttentionBlock]) -> str:
    """Return how many attentions of a plan are fused, out of how many."""
    if not blocks or any(block.fused is None for block in blocks):
        return "?" if blocks else "–"
    return f"{sum(bool(block.fused) for block in blocks)} of {len(blocks)}"
