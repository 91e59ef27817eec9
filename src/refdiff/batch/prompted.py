"""`segment --box --point`: an image and a prompt in, SAM's masks out, without a phrase."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.options import DEFAULT_BACKEND, DEFAULT_RUN, BackendOptions, RunOptions
from refdiff.loading import open_backend, segmenter_of
from refdiff.reports.table import Table, facts_table
from refdiff.runtime.image import ImageLike
from refdiff.runtime.masks import compress_coco_rle, to_coco_rle
from refdiff.runtime.refinement import Refinement


@dataclass(frozen=True, kw_only=True)
class PromptedMasks:
    """A refinement, and how it was computed."""

    prompt: Mapping[str, Any]
    """"box", "points" and "labels", as they were given."""
    result: Refinement
    model: str
    backend: str
    backend_reason: str
    """Reason why this back-end was chosen."""
    refine_ms: float
    random_weights: bool
    """The bundle's weights are random: the mask means nothing."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; masks are compressed COCO run lengths, the best first."""
        result = self.result
        height, width = result.mask.shape
        rles = [compress_coco_rle(to_coco_rle(mask)) for mask in result.masks]
        box = result.box
        return {
            "prompt": dict(self.prompt),
            "matched": box is not None,
            "reason": None if box is not None else "SAM's best mask is empty",
            "cautions": list(result.cautions),
            "predicted_iou": [float(iou) for iou in result.predicted_iou],
            "box_xyxy_px": None if box is None else [*box[:2], box[2] - 1, box[3] - 1],
            "area_px": result.area,
            "size": {"width": width, "height": height},
            "mask": rles[0],
            "masks": rles,
            "model": self.model,
            "random_weights": self.random_weights,
            "backend": self.backend,
            "backend_reason": self.backend_reason,
            "refine_ms": round(self.refine_ms, 2),
        }


def segment_prompt(
    bundle: Path | str,
    image: ImageLike,
    *,
    box: Sequence[float] | None,
    points: Sequence[Sequence[float]],
    labels: Sequence[int],
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
) -> PromptedMasks:
    """Segment what a box or points show; see `Segmenter.refine`.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: the image, the prompt or an option cannot be used.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing.
        EngineError: a graph failed, or no plan fits.
    """
    opened = find_bundle(bundle, expect=options.expect)
    check_trained(opened, allow_random_weights=options.allow_random_weights)
    sessions = open_backend(opened, backend)
    with segmenter_of(opened, sessions, options.pipeline_options(opened.spec)) as segmenter:
        start = time.perf_counter()
        result = segmenter.refine(image, box=box, points=points, labels=labels)
        took_ms = 1e3 * (time.perf_counter() - start)
    return PromptedMasks(
        prompt={"box": box, "points": points, "labels": labels},
        result=result,
        model=opened.spec.name,
        backend=sessions.backend,
        backend_reason=sessions.reason,
        refine_ms=took_ms,
        random_weights=opened.manifest.random_seed is not None,
    )


def prompted_table(found: PromptedMasks, files: Mapping[str, Path]) -> Table:
    """Lay out the best mask, one fact per row.

    Args:
        found: from `segment_prompt`.
        files: kind -> path of what was written.
    """
    document = found.to_json()
    width, height = document["size"]["width"], document["size"]["height"]
    facts = [
        ("prompt", _prompt_text(found.prompt)),
        ("answer", "best of SAM's masks" if document["matched"] else f"none: {document['reason']}"),
        ("image", f"{width}x{height} px"),
        ("predicted IoU", "   ".join(f"{iou:.3f}" for iou in document["predicted_iou"])),
    ]
    if document["matched"]:
        x0, y0, x1, y1 = document["box_xyxy_px"]
        share = document["area_px"] / (width * height)
        facts += [
            ("box", f"x {x0} to {x1}, y {y0} to {y1}"),
            ("area", f"{document['area_px']} px, {share:.1%} of the image"),
        ]
    facts += [
        ("computed by", f"{found.model}   {found.backend}"),
        ("time", f"{document['refine_ms']:.0f} ms"),
        *((kind, str(path)) for kind, path in files.items()),
        *(("caution", caution) for caution in found.result.cautions),
    ]
    return facts_table(facts)


def _prompt_text(prompt: Mapping[str, Any]) -> str:
    parts = [] if prompt["box"] is None else [f"box {_numbers(prompt['box'])}"]
    for point, label in zip(prompt["points"], prompt["labels"], strict=True):
        parts.append(f"{'point' if label else 'negative point'} {_numbers(point)}")
    return "   ".join(parts)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
