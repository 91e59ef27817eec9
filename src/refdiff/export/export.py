"""`export`: a model's torch modules to a checked bundle, on feeds that the real pipeline made."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.calibration.int8_recipe import SMOOTHING
from refdiff.calibration.precision import Wanted, convert_bundle
from refdiff.contracts.atomic_io import report_write_errors
from refdiff.contracts.manifest import MANIFEST_NAME
from refdiff.contracts.optional import require_export
from refdiff.contracts.options import Options, options_for
from refdiff.contracts.progress import Progress, silent
from refdiff.data.sample import Sample
from refdiff.engines.factory import load_check_session
from refdiff.errors import InputError
from refdiff.miniature.scenes import render_scene
from refdiff.models.choice import MODELS, ModelChoice, load_choice
from refdiff.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from refdiff.contracts.manifest import Manifest
    from refdiff.contracts.spec import ModelSpec
    from refdiff.contracts.stack import ModelStack

PURPOSE = "the export"

_QUESTIONS = ((2_000_011, "the red mug on the left"), (2_000_012, "big bowl behind the bottle"))
"""Scene seed and phrase. Any scene and phrase will do: feeds are recorded, answers are not looked at."""

_ONE_BATCH = 8
"""Points per side of a rehearsal's grid: 64 points, one decoder call, as good a measure as sixteen."""


def export(
    model: str | ModelChoice = "mini",
    *,
    precision: str = "fp32",
    recipe: Path | None = None,
    feeds: Path | None = None,
    ranges: str = "percentile",
    smoothing: float | None = SMOOTHING,
    budget: str | None = None,
    timed: bool = True,
    output: Path | str,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Export a model as the bundle `output`, which appears whole or not at all.

    Args:
        model: a name of `refdiff.models.choice.MODELS`, a choice of parts, or an fp32 bundle's folder, whose
            graphs are then converted without torch.
        precision: one of `refdiff.calibration.precision.PRECISIONS`.
        recipe: a precision recipe to follow; None makes one by the built-in rules.
        feeds: what `calibrate` recorded, for the ranges of eight-bit tensors; None records it now.
        ranges: how they are taken from the feeds; one of `refdiff.calibration.int8_recipe.METHODS`.
        smoothing: strength of SmoothQuant, 0..1; None leaves it out.
        budget: what eight bits may cost the task, "mIoU -0.5" for instance; blocks that cost more stay in
            half precision.
        timed: keep eight bits only where this machine's GPU, if it has one that TensorRT runs on, is faster
            with them than in half precision.
        output: where the bundle will be.
        overwrite: replace a bundle that is there.
        progress: told one line at each step.

    Raises:
        InputError: an unknown model or precision, a checkpoint, recipe or feeds that cannot be used, or an
            output that cannot be written.
        MissingDependencyError: torch or a library around it is not installed, or a checkpoint cannot be had.
        GateError: an exported graph is not its torch module, or a half-precision one outside its tolerance.
    """
    tell, target = progress or silent, Path(output)
    choice = ModelChoice(name=model) if isinstance(model, str) else model
    is_bundle = choice.name not in MODELS and (Path(choice.name) / MANIFEST_NAME).is_file()
    wanted = Wanted(
        precision=precision,
        recipe=recipe,
        feeds=feeds,
        ranges=ranges,
        smoothing=smoothing,
        budget=budget,
        timed=timed,
    )
    wanted.check(bundle=Path(choice.name) if is_bundle else None)
    if is_bundle:
        choice.check_bundle()
    else:
        choice.check()
    if os.path.lexists(output) and not overwrite:  # said again by the writer, but minutes later
        raise InputError(f"{output} exists; choose another place, or allow overwriting (--overwrite)")
    if is_bundle:
        return convert_bundle(Path(choice.name), wanted, output=target, overwrite=overwrite, progress=tell)
    if precision == "fp32":
        return _export_choice(choice, target, overwrite=overwrite, tell=tell)
    with _beside(target) as folder:
        _export_choice(choice, folder / "fp32", overwrite=False, tell=tell)
        return convert_bundle(folder / "fp32", wanted, output=target, overwrite=overwrite, progress=tell)


def _export_choice(choice: ModelChoice, output: Path, *, overwrite: bool, tell: Progress) -> Manifest:
    tell(f"opening {choice.title}")
    stack = load_choice(choice, PURPOSE, tell)
    return export_stack(stack, output=output, overwrite=overwrite, thorough=choice.built_in, progress=tell)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A hidden folder on the target's disk, for the fp32 bundle on the way."""
    with report_write_errors(f"bundle {target}", "free or choose another place"):
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.absolute().parent)
    with scratch as folder:
        yield Path(folder)


def export_stack(
    stack: ModelStack,
    *,
    output: Path,
    overwrite: bool = False,
    thorough: bool = True,
    progress: Progress,
) -> Manifest:
    """As `export` in fp32, for a stack that is at hand.

    Args:
        stack: the models.
        output: where the bundle will be.
        overwrite: replace a bundle that is there.
        thorough: rehearse all questions in both variants; False: one in one, which still runs every graph.
        progress: told one line at each step.
    """
    lean = load_check_session()  # what checks the graphs is missing now, or not at all
    with require_export(PURPOSE):
        from refdiff.export.bundle_export import export_bundle
        from refdiff.export.rehearsal import Rehearsal
        from refdiff.export.wrappers import clip_positions
        from refdiff.passes.fuse_attention import bounded_model
    questions = _QUESTIONS if thorough else _QUESTIONS[:1]
    play = Rehearsal(
        stack.spec,
        Tokenizer(stack.tokenizer_json, stack.spec.context_length),
        [Sample(id=phrase, image=render_scene(seed).image, phrase=phrase) for seed, phrase in questions],
        _rehearsed(stack.spec, thorough=thorough),
        lambda: clip_positions(stack),
    ).play
    return export_bundle(
        stack,
        output,
        rehearse=play,
        open_graph=lambda path, batch: lean(bounded_model(path, batch=batch), folder=path.parent),
        progress=progress,
        overwrite=overwrite,
    )


def _rehearsed(spec: ModelSpec, *, thorough: bool) -> Sequence[Options]:
    """Both variants feed shapes that the other does not; `official` alone runs every graph."""
    names = ("official", "edge") if thorough else ("official",)
    variants = [options_for(spec, variant=name) for name in names]
    return [
        dataclasses.replace(
            options,
            proposals=dataclasses.replace(
                options.proposals,
                points_per_side=min(_ONE_BATCH, options.proposals.points_per_side),
                decode_all_prompts=True,  # random weights may find no prompt worth a mask
            ),
        )
        for options in variants
    ]
