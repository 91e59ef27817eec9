"""`export`: a model's torch modules to a checked bundle, on feeds that the real pipeline made."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.api.extras import import_torch_room
from refdiff.api.models import ModelChoice, load_choice
from refdiff.api.progress import Progress, silent
from refdiff.contracts.options import Options, options_for
from refdiff.engines.factory import lean_session
from refdiff.errors import InputError
from refdiff.miniature.scenes import render_scene
from refdiff.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from refdiff.contracts.manifest import Manifest
    from refdiff.contracts.spec import ModelSpec
    from refdiff.contracts.stack import ModelStack

PRECISIONS = ("fp32",)

PURPOSE = "the export"

_QUESTIONS = ((2_000_011, "the red mug on the left"), (2_000_012, "big bowl behind the bottle"))
"""Scene seed and phrase. Any scene and phrase will do: feeds are recorded, answers are not looked at."""

_ONE_BATCH = 8
"""Points per side of a rehearsal's grid: 64 points, one decoder call, as good a measure as sixteen."""


def export(
    model: str | ModelChoice = "mini",
    *,
    precision: str = "fp32",
    output: Path | str,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Export a model as the bundle `output`, which appears whole or not at all.

    Args:
        model: a name of `refdiff.api.models.MODELS`, or a choice of parts.
        precision: one of `PRECISIONS`.
        output: where the bundle will be.
        overwrite: replace a bundle that is there.
        progress: told one line at each step.

    Raises:
        InputError: an unknown model or precision, a checkpoint that cannot be used, or an output that cannot
            be written.
        MissingDependencyError: torch or a library around it is not installed, or a checkpoint cannot be had.
        GateError: an exported graph is not its torch module.
    """
    tell = progress or silent
    choice = ModelChoice(name=model) if isinstance(model, str) else model
    choice.check()
    check_precision(precision)
    if os.path.lexists(output) and not overwrite:  # said again by the writer, but minutes later
        raise InputError(f"{output} exists; choose another place, or allow overwriting (--overwrite)")
    tell(f"opening {choice.title}")
    stack = load_choice(choice, PURPOSE, tell)
    return export_stack(
        stack,
        precision=precision,
        output=Path(output),
        overwrite=overwrite,
        thorough=choice.built_in,
        progress=tell,
    )


def export_stack(
    stack: ModelStack,
    *,
    precision: str = "fp32",
    output: Path,
    overwrite: bool = False,
    thorough: bool = True,
    progress: Progress,
) -> Manifest:
    """As `export`, for a stack that is at hand.

    Args:
        stack: the models.
        precision: one of `PRECISIONS`.
        output: where the bundle will be.
        overwrite: replace a bundle that is there.
        thorough: rehearse all questions in both profiles; False: one in one, which still runs every graph.
        progress: told one line at each step.
    """
    open_graph = lean_session()  # what checks the graphs is missing now, or not at all
    rehearsal = import_torch_room("refdiff.export.rehearsal", PURPOSE)
    wrappers = import_torch_room("refdiff.export.wrappers", PURPOSE)
    questions = _QUESTIONS if thorough else _QUESTIONS[:1]
    play = rehearsal.Rehearsal(
        stack.spec,
        Tokenizer(stack.tokenizer_json, stack.spec.context_length),
        [(render_scene(seed).image, phrase) for seed, phrase in questions],
        _rehearsed(stack.spec, thorough=thorough),
        lambda: wrappers.clip_positions(stack),
    ).play
    manifest: Manifest = import_torch_room("refdiff.export.bundle_export", PURPOSE).export_bundle(
        stack,
        output,
        rehearse=play,
        open_graph=open_graph,
        progress=progress,
        precision=precision,
        overwrite=overwrite,
    )
    return manifest


def check_precision(precision: str) -> None:
    """Refuse a precision the export cannot write.

    Raises:
        InputError: no such precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; so far there is only: {', '.join(PRECISIONS)}")


def _rehearsed(spec: ModelSpec, *, thorough: bool) -> Sequence[Options]:
    """Both profiles feed shapes that the other does not; `official` alone runs every graph."""
    profiles = [
        options_for(spec, profile=name) for name in (("official", "edge") if thorough else ("official",))
    ]
    return [
        dataclasses.replace(
            options,
            proposals=dataclasses.replace(
                options.proposals, points_per_side=min(_ONE_BATCH, options.proposals.points_per_side)
            ),
        )
        for options in profiles
    ]
