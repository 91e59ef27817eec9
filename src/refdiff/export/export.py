"""The verb `export`: write a model's torch modules as a checked bundle.

This module loads without torch; its functions need the extra `export`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.calibration.convert import PrecisionOptions, convert
from refdiff.contracts.atomic_io import open_draft_folder, report_write_errors
from refdiff.contracts.bundle_writer import check_bundle_target
from refdiff.contracts.optional import require_export
from refdiff.contracts.progress import Progress, silent
from refdiff.contracts.spec import check_maps
from refdiff.engines.factory import load_check_session
from refdiff.models.choice import ModelChoice, load_choice

if TYPE_CHECKING:
    from refdiff.contracts.manifest import Manifest
    from refdiff.contracts.stack import ModelStack

PURPOSE = "the export"


def export(
    model: str | ModelChoice = "mini",
    precision: PrecisionOptions | str = "fp32",
    *,
    output: Path | str,
    maps: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Export a model as a bundle; in another precision than fp32 the bundle is then converted.

    Args:
        model: a name of `refdiff.models.choice.MODELS`, or a choice of parts.
        precision: one of `refdiff.calibration.convert.PRECISIONS`, or more options with it.
        output: the bundle's folder; it appears whole or not at all.
        maps: more outputs of the UNet's attention, of `refdiff.contracts.spec.MAP_NAMES`.
        overwrite: replace an existing bundle.
        progress: receives one line at each step.

    Returns:
        The bundle's manifest.

    Raises:
        InputError: an unknown model or precision, a checkpoint, recipe or feeds that cannot be used, or an
            output that cannot be written.
        MissingDependencyError: torch or a library around it is not installed, or a checkpoint cannot be had.
        GateError: an exported graph differs from its torch module, or a half-precision one is outside its
            tolerance.
    """
    choice = ModelChoice(name=model) if isinstance(model, str) else model
    options = PrecisionOptions(precision=precision) if isinstance(precision, str) else precision
    target, progress = Path(output), progress or silent
    options.check()
    choice.check()
    check_maps(maps)
    check_bundle_target(target, overwrite=overwrite)
    if options.precision == "fp32":
        return _export_choice(choice, target, maps=maps, overwrite=overwrite, progress=progress)
    with _scratch_next_to(target) as folder:
        _export_choice(choice, folder / "fp32", maps=maps, overwrite=False, progress=progress)
        return convert(folder / "fp32", options, output=target, overwrite=overwrite, progress=progress)


def export_stack(
    stack: ModelStack,
    *,
    output: Path,
    overwrite: bool = False,
    thorough: bool = True,
    progress: Progress,
) -> Manifest:
    """Export a loaded stack in fp32; see `export`.

    Args:
        stack: the models.
        output: the bundle's folder.
        overwrite: replace an existing bundle.
        thorough: feed the graphs with two samples in two variants; False: with one in one, which still runs
            every graph.
        progress: receives one line at each step.
    """
    load_check_session()  # a missing package is reported before any work
    with require_export(PURPOSE):
        from refdiff.export.bundle_export import export_bundle
        from refdiff.export.pipeline_feeds import PipelineFeeds
    feeds = PipelineFeeds.rendered(stack, thorough=thorough)
    return export_bundle(stack, output, feeds=feeds, progress=progress, overwrite=overwrite)


def _export_choice(
    choice: ModelChoice, output: Path, *, maps: Sequence[str], overwrite: bool, progress: Progress
) -> Manifest:
    progress(f"opening {choice.title}")
    stack = load_choice(choice, PURPOSE, progress)
    stack.spec = replace(stack.spec, diffusion=stack.spec.diffusion.with_maps(maps))
    return export_stack(
        stack, output=output, overwrite=overwrite, thorough=choice.built_in, progress=progress
    )


@contextmanager
def _scratch_next_to(target: Path) -> Iterator[Path]:
    """Make a hidden folder on the target's disk, for the fp32 bundle that is then converted."""
    with ExitStack() as stack:
        with report_write_errors(f"bundle {target}", "free or choose another place"):
            target.absolute().parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(open_draft_folder(target.absolute()))
        yield folder
