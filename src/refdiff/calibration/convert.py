"""`convert`: an fp32 bundle in, the same bundle in fewer bits out, each graph measured before it counts.

A graph stays in eight bits only inside its committed tolerance and, where a device can be timed, when it is
faster there; otherwise it is written in half precision, and the recipe in the bundle says why. A
half-precision graph outside its tolerance stops the command.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from refdiff.accuracy.tolerances import GraphTolerance, graph_tolerance
from refdiff.contracts.bundle import Bundle, GraphRecord, open_bundle, write_bundle
from refdiff.contracts.graphs import GRAPHS, GraphSpec, graph_contract
from refdiff.contracts.manifest import GOLDEN_NAME, POSITIONS_NAME, TOKENIZER_NAME
from refdiff.contracts.optional import require_export
from refdiff.contracts.parity import Parity, measure_parity, select_recorded
from refdiff.contracts.progress import Progress, silent
from refdiff.contracts.recipe import QUANTIZED, RECIPE_NAME, GraphRecipe, Recipe, Rule
from refdiff.contracts.session import Array
from refdiff.engines.factory import load_check_session
from refdiff.errors import BundleError, GateError, InputError, RefdiffError

if TYPE_CHECKING:
    from refdiff.contracts.bundle import GoldenTensors, Manifest

PURPOSE = "changing the precision"


class Clock(Protocol):
    """Times graphs on a device; see `refdiff.engines.trt.latency_race.LatencyRace`."""

    where: str
    """Device and TensorRT, for a person."""

    def medians_ms(
        self, graph: GraphSpec, forms: Mapping[str, Path], feeds: Mapping[str, Array], *, scratch: Path
    ) -> dict[str, float]:
        """Name -> median of the milliseconds a form of the graph takes, all run in turns."""
        ...


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One graph as it was written."""

    recipe: GraphRecipe
    parity: Mapping[str, Parity]
    """Output -> how close it comes to torch on the golden feeds."""
    refused: str | None = None
    """Why it is not in eight bits though that was asked; None when it is, or was not."""
    timed: str | None = None
    """What a device said of its eight bits, or why it said nothing; None where it was not asked."""


def convert(
    bundle: Path | str,
    recipe: Recipe,
    *,
    precision: str,
    output: Path,
    overwrite: bool = False,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the bundle `output`: the graphs of an fp32 bundle, as a recipe says.

    Args:
        bundle: an fp32 bundle.
        recipe: of the same weights.
        precision: what the bundle is called, as long as any graph is in it.
        output: where the new bundle will be; it appears whole or not at all.
        overwrite: replace a bundle that is there.
        clock: of the device that eight bits have to be faster on; None looks at accuracy alone.
        progress: told one line for each graph.

    Raises:
        BundleError: the bundle is missing or damaged.
        InputError: it is not in fp32, the recipe is of other weights or names unknown nodes, or a weight does
            not fit into half precision.
        GateError: a half-precision graph is outside its tolerance.
    """
    tell, source = progress or silent, open_bundle(bundle)
    check_source(source)
    check_recipe(source, recipe)
    golden, contract = source.golden(), graph_contract(source.spec)
    with write_bundle(output, overwrite=overwrite) as writer:
        written: dict[str, Converted] = {}
        gated = _Gated(source, writer.path, golden, clock)
        for name in GRAPHS:
            if name == "unet_taps":
                _cut(source, writer.path)
                measured = _measured(writer.path, name, golden)
                written[name] = dataclasses.replace(written["unet"], parity=measured)
            else:
                written[name] = gated.convert(name, recipe.graphs[name])
            tell(_line(name, written[name], asked=precision))
        for name in (TOKENIZER_NAME, POSITIONS_NAME, GOLDEN_NAME):
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
                    files=_files(writer.path, name),
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
    """Only an fp32 bundle can be converted: bits that are gone do not come back.

    Raises:
        InputError: it is of another precision.
    """
    if bundle.manifest.precision != "fp32":
        raise InputError(
            f"{bundle.path} is in {bundle.manifest.precision}, expected fp32; "
            "convert the bundle it was made from"
        )


def check_recipe(bundle: Bundle, recipe: Recipe) -> None:
    """A recipe fits the bundle it was made for alone.

    Raises:
        InputError: it is of another model or other weights, or misses a graph.
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
class _Gated:
    """Writes graphs into a draft; eight bits that are too inexact, or no faster, become half precision."""

    source: Bundle
    folder: Path
    golden: GoldenTensors
    clock: Clock | None

    def convert(self, name: str, wanted: GraphRecipe) -> Converted:
        """Write one graph, measure it, and write it again in half precision if eight bits do not pay."""
        with require_export(PURPOSE):
            from refdiff.passes.convert import convert_graph
        convert_graph(self.source.graph_path(name), self.folder / f"{name}.onnx", wanted)
        measured = _measured(self.folder, name, self.golden)
        complaint = _complaint(measured, graph_tolerance(wanted.precision, name))
        if wanted.quantized is None:
            if complaint is not None:
                raise GateError(
                    f"{name} in {wanted.half}: {complaint}; nothing was written. Find the nodes that need "
                    f"fp32 with: refdiff bisect {self.source.path} --graph {name}"
                )
            return Converted(recipe=wanted, parity=measured)
        half, timed = dataclasses.replace(wanted, quantized=None), None
        if complaint is None and self.clock is not None:
            complaint, timed = self._raced(self.clock, name, wanted, half)
        if complaint is None:
            return Converted(recipe=wanted, parity=measured, timed=timed)
        reason = f"in {wanted.quantized.type} {complaint}"
        rule = Rule(nodes=tuple(wanted.quantized.nodes), because=reason, origin="gate")
        again = self.convert(name, dataclasses.replace(half, excluded=(*wanted.excluded, rule)))
        return dataclasses.replace(again, refused=reason)

    def _raced(
        self, clock: Clock, name: str, wanted: GraphRecipe, half: GraphRecipe
    ) -> tuple[str | None, str | None]:
        """Whether the written graph is slower than its half-precision form: a complaint, or what was seen."""
        with require_export(PURPOSE):
            from refdiff.passes.convert import convert_graph
        graph, (feeds, _) = graph_contract(self.source.spec)[name], self.golden[name]
        with tempfile.TemporaryDirectory(prefix=".half.", dir=self.folder) as temporary:
            scratch = Path(temporary)
            rival = scratch / f"{name}.onnx"
            convert_graph(self.source.graph_path(name), rival, half)
            forms = {wanted.precision: self.folder / f"{name}.onnx", half.precision: rival}
            try:
                times = clock.medians_ms(graph, forms, feeds, scratch=scratch)
            except RefdiffError as error:
                return None, f"not timed: {error}"
            ours, theirs = times[wanted.precision], times[half.precision]
            said = f"{ours:.3f} ms, in {half.precision} {theirs:.3f} ms ({clock.where})"
            if ours < theirs:
                return None, said
            fault = _complaint(_measured(scratch, name, self.golden), graph_tolerance(half.precision, name))
        if fault is None:
            return f"takes {said}", None
        return None, f"{said}: slower, and kept, for {half.precision} is outside its tolerance: {fault}"


def _measured(folder: Path, name: str, golden: GoldenTensors) -> dict[str, Parity]:
    """How close the written graph comes to torch on the golden feeds, every half-precision result rounded."""
    if name not in golden:
        raise BundleError(f"graph {name} has no golden record; export the bundle again")
    lean = load_check_session()
    with require_export(PURPOSE):
        from refdiff.passes.round_half import rounded_model
    feeds, expected = golden[name]
    batch = len(next(iter(feeds.values())))
    session = lean(rounded_model(folder / f"{name}.onnx", batch=batch), folder=folder)
    results = session.run(feeds, tuple(expected))
    return {
        key: measure_parity(select_recorded(results[key], record), record) for key, record in expected.items()
    }


def _complaint(measured: Mapping[str, Parity], tolerance: GraphTolerance) -> str | None:
    """The first output outside the tolerance, in words."""
    for output, closeness in measured.items():
        if not closeness.error <= tolerance.error:
            return f"{output} is {closeness.error:.1e} of its range from torch, allowed {tolerance.error:.0e}"
        if not closeness.correlation >= tolerance.correlation:
            return (
                f"{output} correlates {closeness.correlation:.5f} with torch, "
                f"expected {tolerance.correlation:g} or more"
            )
    return None


def _cut(source: Bundle, folder: Path) -> None:
    with require_export(PURPOSE):
        from refdiff.passes.early_exit import cut_taps
    contract = graph_contract(source.spec)
    cut_taps(folder / "unet.onnx", contract["unet_taps"], cut_after=source.spec.diffusion.cut_after)


def _files(folder: Path, name: str) -> tuple[str, ...]:
    data = f"{'unet' if name == 'unet_taps' else name}.onnx.data"
    return tuple(each for each in (f"{name}.onnx", data) if (folder / each).exists())


def _line(name: str, converted: Converted, *, asked: str) -> str:
    allowed = graph_tolerance(converted.recipe.precision, name).error
    worst = max((each.error for each in converted.parity.values()), default=0.0)
    text = f"{name}: {converted.recipe.precision}, {worst:.1e} of its range from torch, allowed {allowed:.0e}"
    if asked in QUANTIZED and converted.recipe.quantized is None and converted.refused is None:
        text += " (not in eight bits, by rule)"
    text = text if converted.timed is None else f"{text}; {converted.timed}"
    return text if converted.refused is None else f"{text} (kept out of eight bits: {converted.refused})"
