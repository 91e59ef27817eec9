"""`convert`: an fp32 bundle in, the same bundle in fewer bits out, each graph measured before it counts.

A graph stays in eight bits only inside its committed tolerance; otherwise it is written in half precision,
and the recipe in the bundle says why. A half-precision graph outside its tolerance stops the command.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.accuracy.gates import GraphTolerance, graph_tolerance
from refdiff.api.extras import import_torch_room
from refdiff.api.progress import Progress, silent
from refdiff.contracts.bundle import Bundle, GraphRecord, open_bundle, writing_bundle
from refdiff.contracts.closeness import Parity, parity, recorded_part
from refdiff.contracts.graphs import GRAPHS, graph_contract
from refdiff.contracts.manifest import GOLDEN_NAME, POSITIONS_NAME, TOKENIZER_NAME
from refdiff.contracts.recipe import RECIPE_NAME, GraphRecipe, Recipe, Rule
from refdiff.engines.factory import lean_session
from refdiff.errors import BundleError, GateError, InputError

if TYPE_CHECKING:
    from types import ModuleType

    from refdiff.contracts.bundle import GoldenTensors, Manifest

PURPOSE = "changing the precision"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One graph as it was written."""

    recipe: GraphRecipe
    parity: Mapping[str, Parity]
    """Output -> how close it comes to torch on the golden feeds."""
    refused: str | None = None
    """Why it is not in eight bits though that was asked; None when it is, or was not."""


def convert(
    bundle: Path | str,
    recipe: Recipe,
    *,
    precision: str,
    output: Path,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write the bundle `output`: the graphs of an fp32 bundle, as a recipe says.

    Args:
        bundle: an fp32 bundle.
        recipe: of the same weights.
        precision: what the bundle is called: that of its UNet.
        output: where the new bundle will be; it appears whole or not at all.
        overwrite: replace a bundle that is there.
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
    passes = import_torch_room("refdiff.calibration.convert", PURPOSE)
    golden, contract = source.golden(), graph_contract(source.spec)
    with writing_bundle(output, overwrite=overwrite) as draft:
        written: dict[str, Converted] = {}
        for name in GRAPHS:
            if name == "unet_taps":
                _cut(source, draft.path)
                measured = _measured(draft.path, name, golden)
                written[name] = dataclasses.replace(written["unet"], parity=measured)
            else:
                written[name] = _convert_graph(passes, source, draft.path, recipe, name, golden)
            tell(_line(name, written[name]))
        for name in (TOKENIZER_NAME, POSITIONS_NAME, GOLDEN_NAME):
            shutil.copyfile(source.path / name, draft.path / name)
        final = dataclasses.replace(recipe, graphs={name: written[name].recipe for name in recipe.graphs})
        (draft.path / RECIPE_NAME).write_text(final.to_text(), encoding="utf-8")
        return draft.describe(
            spec=source.spec,
            precision=precision,
            sources=source.manifest.sources,
            versions=source.manifest.versions,
            graphs={
                name: GraphRecord(
                    files=_files(draft.path, name),
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


def _convert_graph(
    passes: ModuleType, source: Bundle, folder: Path, recipe: Recipe, name: str, golden: GoldenTensors
) -> Converted:
    """Write one graph, measure it, and write it again in half precision if eight bits are too few."""
    wanted = recipe.graphs[name]
    passes.convert_graph(source.graph_path(name), folder / f"{name}.onnx", wanted)
    measured = _measured(folder, name, golden)
    tolerance = graph_tolerance(wanted.precision, name)
    complaint = _complaint(measured, tolerance)
    if complaint is None:
        return Converted(recipe=wanted, parity=measured)
    if wanted.quantised is None:
        raise GateError(
            f"{name} in {wanted.half}: {complaint}; nothing was written. Find the nodes that need fp32 with: "
            f"refdiff bisect {source.path} --graph {name}"
        )
    reason = f"in {wanted.quantised.type} {complaint}"
    rule = Rule(nodes=tuple(wanted.quantised.nodes), because=reason, origin="gate")
    half = dataclasses.replace(wanted, quantised=None, left=(*wanted.left, rule))
    again = dataclasses.replace(recipe, graphs={**recipe.graphs, name: half})
    return dataclasses.replace(_convert_graph(passes, source, folder, again, name, golden), refused=reason)


def _measured(folder: Path, name: str, golden: GoldenTensors) -> dict[str, Parity]:
    """How close the written graph comes to torch on the golden feeds, every half-precision result rounded."""
    if name not in golden:
        raise BundleError(f"graph {name} has no golden record; export the bundle again")
    rounded = import_torch_room("refdiff.engines.rounded", PURPOSE)
    session = lean_session()(rounded.rounded_model(folder / f"{name}.onnx"), folder=folder)
    feeds, expected = golden[name]
    results = session.run(feeds, tuple(expected))
    return {key: parity(recorded_part(results[key], record), record) for key, record in expected.items()}


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
    module = import_torch_room("refdiff.export.early_exit", PURPOSE)
    contract = graph_contract(source.spec)
    module.cut_taps(folder / "unet.onnx", contract["unet_taps"], cut_after=source.spec.diffusion.cut_after)


def _files(folder: Path, name: str) -> tuple[str, ...]:
    data = f"{'unet' if name == 'unet_taps' else name}.onnx.data"
    return tuple(each for each in (f"{name}.onnx", data) if (folder / each).exists())


def _line(name: str, converted: Converted) -> str:
    worst = max((each.error for each in converted.parity.values()), default=0.0)
    text = f"{name}: {converted.recipe.precision}, {worst:.1e} of its range from torch"
    return text if converted.refused is None else f"{text} (kept out of eight bits: {converted.refused})"
