"""Answers of the HTTP API as JSON-ready dictionaries.

Axes: y/x = image rows/columns.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from refdiff.contracts.optional import install_line
from refdiff.contracts.session import Bool
from refdiff.errors import MissingDependencyError
from refdiff.runtime.image import png
from refdiff.runtime.masks import compress_coco_rle, to_coco_rle
from refdiff.runtime.segmentation import Segmentation
from refdiff.serve.request import MaskFormat, SegmentRequest

PARTS = ("hard", "soft", "generative", "place", "total")


def prompt_result(answer: Segmentation, index: int, request: SegmentRequest) -> dict[str, Any]:
    """Return the answer to one prompt.

    Returns:
        `prompt_index`, `echo` and `predictions` as in roboflow's SAM 3 response, with one prediction or none;
        and of refdiff's own `matched`, `reason`, `cautions`, `root`, and on request `candidates` and `heat`.
    """
    result: dict[str, Any] = {
        "prompt_index": index,
        "echo": {"text": answer.phrase},
        "predictions": _predictions(answer, request.format),
        "matched": answer.matched,
        "reason": answer.reason,
        "cautions": list(answer.cautions),
        "root": answer.root,
    }
    if request.candidates:
        result["candidates"] = _candidates(answer, request.format)
    if request.heat:
        result["heat"] = None if answer.heat is None else _base64_png(_to_levels(answer.heat))
    return result


def _predictions(answer: Segmentation, wanted: MaskFormat) -> list[dict[str, Any]]:
    if answer.index is None:
        return []
    x0, y0, x1, y1 = answer.box or (0, 0, 0, 0)
    return [
        {
            "masks": encode_mask(answer.mask, wanted),
            "format": wanted,
            "confidence": answer.confidence,
            "score": answer.score,
            "score_parts": _parts(answer, answer.index),
            "candidate": answer.index,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": answer.area,
        }
    ]


def _candidates(answer: Segmentation, wanted: MaskFormat) -> list[dict[str, Any]]:
    found = answer.candidates
    return [
        {
            "masks": encode_mask(np.asarray(found.masks[number]), wanted),
            "predicted_iou": float(found.predicted_iou[number]),
            "kept": bool(found.kept[number]),
            "score_parts": _parts(answer, number),
        }
        for number in range(len(found))
    ]


def _parts(answer: Segmentation, number: int) -> dict[str, float | None]:
    values = {name: float(getattr(answer.scores, name)[number]) for name in PARTS}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def encode_mask(mask: Bool, wanted: MaskFormat) -> Any:
    """Encode a mask [y, x].

    Returns:
        "rle": compressed COCO run lengths. "polygon": a list of rings, each a list of [x, y] in px along the
        outline, holes included as rings of their own. "png": a file in base64, 255 inside and 0 outside.

    Raises:
        MissingDependencyError: polygons without OpenCV.
    """
    if wanted == "rle":
        return compress_coco_rle(to_coco_rle(mask))
    if wanted == "png":
        return _base64_png(mask.astype(np.uint8) * np.uint8(255))
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"polygons need OpenCV; {install_line('serve')}") from error
    rings, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [ring.reshape(-1, 2).tolist() for ring in rings]


def _to_levels(heat: Any) -> Any:
    return np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8)


def _base64_png(image: Any) -> str:
    return base64.b64encode(png(image)).decode("ascii")
