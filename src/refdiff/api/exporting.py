"""`export`: a model's torch modules to a checked bundle, on feeds that the real pipeline recorded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.api.extras import check_model, import_torch_room, load_stack
from refdiff.api.progress import Progress, silent
from refdiff.contracts.options import options_for
from refdiff.contracts.session import Array
from refdiff.errors import InputError
from refdiff.miniature.scenes import render_scene
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from refdiff.contracts.manifest import Manifest
    from refdiff.contracts.stack import ModelStack

PRECISIONS = ("fp32",)

PURPOSE = "the export"

RECORDED_PROFILES = ("official", "edge")
"""Both, because each feeds graphs and shapes that the other does not."""

_RECORDED = ((2_000_011, "the red mug on the left"), (2_000_012, "big bowl behind the bottle"))
"""Scene seed and phrase. Any scene and phrase will do: feeds are recorded, answers are not looked at."""


def export(
    model: str = "mini",
    *,
    precision: str = "fp32",
    output: Path | str,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Export a model as the bundle `output`, which appears whole or not at all.

    Args:
        model: one of `refdiff.api.extras.MODELS`.
        precision: one of `PRECISIONS`.
        output: where the bundle will be.
        overwrite: replace a bundle that is there.
        progress: told one line at each step.

    Raises:
        InputError: an unknown model or precision, or an output that cannot be written.
        MissingDependencyError: torch or a library around it is not installed.
        GateError: an exported graph is not its torch module.
    """
    tell = progress or silent
    check_model(model)
    check_precision(precision)
    if os.path.lexists(output) and not overwrite:  # said again by the writer, but minutes later
        raise InputError(f"{output} exists; choose another place, or allow overwriting (--overwrite)")
    tell(f"loading {model}")
    return export_stack(load_stack(model, PURPOSE), output=Path(output), overwrite=overwrite, progress=tell)


def export_stack(
    stack: ModelStack,
    *,
    precision: str = "fp32",
    output: Path,
    overwrite: bool = False,
    progress: Progress,
) -> Manifest:
    """As `export`, for modules that are loaded already."""
    progress("recording what the pipeline feeds its graphs")
    examples = record_examples(stack)
    manifest: Manifest = import_torch_room("refdiff.export.bundle_export", PURPOSE).export_bundle(
        stack, output, examples=examples, progress=progress, precision=precision, overwrite=overwrite
    )
    return manifest


def check_precision(precision: str) -> None:
    """Refuse a precision the export cannot write.

    Raises:
        InputError: no such precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; so far there is only: {', '.join(PRECISIONS)}")


def record_examples(stack: ModelStack) -> dict[str, tuple[dict[str, Array], ...]]:
    """Graph -> its feeds, one of each shape, from the numpy pipeline on the torch modules."""
    torch_sessions = import_torch_room("refdiff.export.torch_sessions", PURPOSE)
    recording = import_torch_room("refdiff.export.recording", PURPOSE)
    positions = import_torch_room("refdiff.export.wrappers", PURPOSE).clip_positions(stack)
    tokenizer = Tokenizer(stack.tokenizer_json, stack.spec.context_length)
    recorder = recording.Recorder(torch_sessions.TorchSessions(stack))
    for profile in RECORDED_PROFILES:
        segmenter = Segmenter(
            sessions=recorder,
            spec=stack.spec,
            options=options_for(stack.spec, profile=profile),
            tokenizer=tokenizer,
            positions=positions,
        )
        for seed, phrase in _RECORDED:
            segmenter.segment(segmenter.encode(render_scene(seed).image), phrase)
    recorder.close()
    examples: dict[str, tuple[dict[str, Array], ...]] = recorder.examples()
    return examples
