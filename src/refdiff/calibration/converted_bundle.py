"""Write a converted bundle; each graph is validated before it is accepted.

A graph stays in eight bits only inside its committed tolerance and, where a device can be timed, only if it
is faster there. Otherwise it is written in half precision, and the recipe in the bundle says why. A
half-precision graph outside its tolerance stops the conversion.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.accuracy.tolerances import GraphTolerance, graph_tolerance
from refdiff.contracts.bundle import Bundle, GraphRecord, write_bundle
from refdiff.contracts.confidence import CONFIDENCE_ARRAYS_NAME, CONFIDENCE_NAME
from refdiff.contracts.graphs import GRAPHS, graph_contract
from refdiff.contracts.manifest import ANSWER_NAME, GOLDEN_NAME, POSITIONS_NAME, PROMPTS_NAME, TOKENIZER_NAME
from refdiff.contracts.optional import require_export
from refdiff.contracts.parity import Parity, measure_parity, select_recorded
from refdiff.contracts.progress import Progress, Step
from refdiff.contracts.recipe import QUANTIZED, RECIPE_NAME, GraphRecipe, Recipe, Rule
from refdiff.engines.factory import load_check_session
from refdiff.errors import BundleError, GateError, InputError, RefdiffError

if TYPE_CHECKING:
    from refdiff.contracts.bundle import GoldenTensors, Manifest
    from refdiff.engines.trt.latency_race import LatencyRace

PURPOSE = "changing the precision"

Tolerances = Callable[[str, str], GraphTolerance]
"""Returns the tolerance of a precision and a graph."""


@dataclass(frozen=True, kw_only=True)
class ConvertedGraph:
    """One graph as it was written."""

    recipe: GraphRecipe
    parity: Mapping[str, Parity]
    """Output -> how close it comes to torch on the golden feeds."""
    refused: str | None = None
    """Reason why it is not in eight bits although the recipe says so; None otherwise."""
    timed: str | None = None
    """Its latencies, or why it was not timed; None where no timing was asked for."""


def write_converted_bundle(
    source: Bundle,
    recipe: Recipe,
    *,
    precision: str,
    output: Path,
    overwrite: bool = False,
    race: LatencyRace | None = None,
    tolerances: Tolerances = graph_tolerance,
    progress: Progress,
) -> Manifest:
    """Write the bundle `output`: the graphs of an fp32 bundle, converted as a recipe says.

    Args:
        source: an fp32 bundle.
        recipe: made for the same weights.
        precision: name of the bundle's precision, as long as any graph is in it.
        output: the new bundle's folder; it appears whole or not at all.
        overwrite: replace an existing bundle.
        race: times the device on which eight bits have to be faster; None checks accuracy alone.
        tolerances: limits of the errors.
        progress: receives one line per graph.

    Raises:
        BundleError: the bundle is damaged.
        InputError: it is not in fp32, the recipe is for other weights or names unknown nodes, or a weight
            does not fit into half precision.
        GateError: a half-precision graph is outside its tolerance.
        MissingDependencyError: onnx_ir or ONNX Runtime is not installed.
    """
    check_source(source)
    check_recipe(source, recipe)
    golden, contract = source.golden(), graph_contract(source.spec)
    with write_bundle(output, overwrite=overwrite) as writer:
        converter = _GraphConverter(source, writer.path, golden, race, tolerances)
        written: dict[str, ConvertedGraph] = {}
        for name in GRAPHS:
            written[name] = (
                converter.cut_taps(written["unet"])
                if name == "unet_taps"
                else converter.convert(name, recipe.graphs[name])
            )
            allowed = tolerances(written[name].recipe.precision, name).error
            line = _describe(name, written[name], asked=precision, allowed=allowed)
            progress(Step(line, done=len(written), total=len(GRAPHS), unit="graphs"))
        confidence = (CONFIDENCE_NAME, CONFIDENCE_ARRAYS_NAME)
        fitted = confidence if CONFIDENCE_NAME in source.manifest.files else ()
        for name in (TOKENIZER_NAME, POSITIONS_NAME, PROMPTS_NAME, GOLDEN_NAME, ANSWER_NAME, *fitted):
            shutil.copyfile(source.path / name, writer.path / name)
        kept = {each.recipe.precision for each in written.values()}
        final = dataclasses.replace(recipe, graphs={name: written[name].recipe for name in recipe.graphs})
        (writer.path / RECIPE_NAME).write_text(final.to_text(), encoding="utf-8")
        return writer.describe(
            spec=source.spec,
            precision=precision if precision in kept else written["unet"].recipe.precision,
            sources=source.manifest.sources,
            versions=source.manifest.versions,
            graphs={
                name: GraphRecord(
                    files=_graph_files(writer.path, name),
                    precision=each.recipe.precision,
                    inputs=contract[name].inputs,
                    outputs=contract[name].outputs,
                    recipe=RECIPE_NAME,
                    parity=dict(each.parity),
                )
                for name, each in written.items()
            },
            random_seed=source.manifest.random_seed,
        )


def check_source(bundle: Bundle) -> None:
    """Refuse a bundle that is not in fp32: lost bits cannot be restored.

    Raises:
        InputError: the bundle has another precision.
    """
    if bundle.manifest.precision != "fp32":
        raise InputError(
            f"{bundle.path} is in {bundle.manifest.precision}, expected fp32; "
            "convert the bundle it was made from"
        )


def check_recipe(bundle: Bundle, recipe: Recipe) -> None:
    """Refuse a recipe that was not made for this bundle.

    Raises:
        InputError: it is for another model or other weights, or misses a graph.
    """
    if recipe.model != bundle.spec.name or dict(recipe.sources) != dict(bundle.manifest.sources):
        raise InputError(
            f"the recipe was made for {recipe.model} with other weights than {bundle.path} holds "
            f"({bundle.spec.name}); make one for this bundle with: refdiff audit {bundle.path}"
        )
    expected = [name for name in GRAPHS if name != "unet_taps"]
    if sorted(recipe.graphs) != sorted(expected):
        raise InputError(
            f"the recipe has graphs {', '.join(sorted(recipe.graphs)) or 'none'}, "
            f"expected exactly {', '.join(sorted(expected))}"
        )


@dataclass(frozen=True)
class _GraphConverter:
    """Writes graphs into a folder; eight bits that are too inexact or not faster become half precision."""

    source: Bundle
    folder: Path
    golden: GoldenTensors
    race: LatencyRace | None
    tolerances: Tolerances

    def convert(self, name: str, recipe: GraphRecipe) -> ConvertedGraph:
        """Write one graph and measure it; write it again in half precision if eight bits do not pay."""
        self._write(name, self.folder, recipe)
        measured = _measure(self.folder, name, self.golden)
        complaint = _find_complaint(measured, self.tolerances(recipe.precision, name))
        if recipe.quantized is None:
            if complaint is not None:
                raise GateError(
                    f"{name} in {recipe.half}: {complaint}; nothing was written. Find the nodes that need "
                    f"fp32 with: refdiff bisect {self.source.path} --graph {name}"
                )
            return ConvertedGraph(recipe=recipe, parity=measured)
        half, timed = dataclasses.replace(recipe, quantized=None), None
        if complaint is None and self.race is not None:
            complaint, timed = self._time_against(half, self.race, name, recipe)
        if complaint is None:
            return ConvertedGraph(recipe=recipe, parity=measured, timed=timed)
        reason = f"in {recipe.quantized.type} {complaint}"
        rule = Rule(nodes=tuple(recipe.quantized.nodes), because=reason, origin="gate")
        again = self.convert(name, dataclasses.replace(half, excluded=(*recipe.excluded, rule)))
        return dataclasses.replace(again, refused=reason)

    def cut_taps(self, unet: ConvertedGraph) -> ConvertedGraph:
        """Cut `unet_taps` out of the written `unet`, and measure it."""
        with require_export(PURPOSE):
            from refdiff.passes.early_exit import cut_taps
        graph = graph_contract(self.source.spec)["unet_taps"]
        cut_taps(self.folder / "unet.onnx", graph, cut_after=self.source.spec.diffusion.cut_after)
        return dataclasses.replace(unet, parity=_measure(self.folder, "unet_taps", self.golden))

    def _write(self, name: str, folder: Path, recipe: GraphRecipe) -> Path:
        with require_export(PURPOSE):
            from refdiff.passes.convert import convert_graph
        path = folder / f"{name}.onnx"
        convert_graph(self.source.graph_path(name), path, recipe)
        return path

    def _time_against(
        self, half: GraphRecipe, race: LatencyRace, name: str, recipe: GraphRecipe
    ) -> tuple[str | None, str | None]:
        """Time the written graph against its half-precision form.

        Returns:
            A complaint if the written graph is slower, else None; and the latencies if it is kept.
        """
        graph, (feeds, _) = graph_contract(self.source.spec)[name], self.golden[name]
        with tempfile.TemporaryDirectory(prefix=".half.", dir=self.folder) as temporary:
            scratch = Path(temporary)
            forms = {
                recipe.precision: self.folder / f"{name}.onnx",
                half.precision: self._write(name, scratch, half),
            }
            try:
                times = race.medians_ms(graph, forms, feeds, scratch=scratch)
            except RefdiffError as error:
                return None, f"not timed: {error}"
            eight, sixteen = times[recipe.precision], times[half.precision]
            latencies = f"{eight:.3f} ms, in {half.precision} {sixteen:.3f} ms ({race.where})"
            if eight < sixteen:
                return None, latencies
            measured = _measure(scratch, name, self.golden)
            half_complaint = _find_complaint(measured, self.tolerances(half.precision, name))
        if half_complaint is None:
            return f"takes {latencies}", None
        return None, (
            f"{latencies}: slower, and kept, for {half.precision} is outside its tolerance: {half_complaint}"
        )


def _measure(folder: Path, name: str, golden: GoldenTensors) -> dict[str, Parity]:
    """Compare a written graph with torch on the golden feeds, with half-precision results rounded."""
    if name not in golden:
        raise BundleError(f"graph {name} has no golden record; export the bundle again")
    session_type = load_check_session()
    with require_export(PURPOSE):
        from refdiff.passes.fuse_attention import FuseAttention
        from refdiff.passes.round_half import rounded_model
    feeds, expected = golden[name]
    batch = len(next(iter(feeds.values())))
    model = rounded_model(folder / f"{name}.onnx", fuse=FuseAttention(batch=batch))
    results = session_type(model, folder=folder).run(feeds, tuple(expected))
    return {
        key: measure_parity(select_recorded(results[key], record), record) for key, record in expected.items()
    }


def _find_complaint(measured: Mapping[str, Parity], tolerance: GraphTolerance) -> str | None:
    """Return a description of the first output outside the tolerance; None if all are inside."""
    for output, closeness in measured.items():
        if not closeness.error <= tolerance.error:
            return f"{output} is {closeness.error:.1e} of its range from torch, allowed {tolerance.error:.0e}"
        if not closeness.correlation >= tolerance.correlation:
            return (
                f"{output} correlates {closeness.correlation:.5f} with torch, "
                f"expected {tolerance.correlation:g} or more"
            )
    return None


def _graph_files(folder: Path, name: str) -> tuple[str, ...]:
    data = f"{'unet' if name == 'unet_taps' else name}.onnx.data"
    return tuple(each for each in (f"{name}.onnx", data) if (folder / each).exists())


def _describe(name: str, graph: ConvertedGraph, *, asked: str, allowed: float) -> str:
    worst = max((each.error for each in graph.parity.values()), default=0.0)
    text = f"{name}: {graph.recipe.precision}, {worst:.1e} of its range from torch, allowed {allowed:.0e}"
    if asked in QUANTIZED and graph.recipe.quantized is None and graph.refused is None:
        text += " (not in eight bits, by rule)"
    text = text if graph.timed is None else f"{text}; {graph.timed}"
    return text if graph.refused is None else f"{text} (kept out of eight bits: {graph.refused})"
