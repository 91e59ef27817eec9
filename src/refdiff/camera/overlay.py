"""Draw a frame with the mask of every phrase, and what is known about it.

Image [y, x, 3] uint8 RGB in, image out. The image keeps its place; text stands on a strip below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refdiff.camera.frame import FrameResult, TargetResult
from refdiff.contracts.optional import require_camera
from refdiff.contracts.session import Bool, ImageArray
from refdiff.runtime.overlay import LEAST_SIDE

COLORS = (
    (255, 60, 190),
    (0, 210, 255),
    (255, 210, 40),
    (90, 240, 90),
    (255, 130, 40),
    (150, 140, 255),
    (255, 110, 110),
    (60, 230, 190),
)
"""Edge of the first phrase's mask, of the second's, ..., and again from the first."""

_CASING, _STRIP, _STATUS = (0, 0, 0), (24, 24, 28), (190, 190, 190)
_TINT = 0.25
"""Share of the phrase's color inside its mask."""
_DASH = 7
"""Points of a dash, and of the gap after it, in the edge of a stale mask."""


def draw_frame(result: FrameResult, *, status: str = "", rows: int | None = None) -> ImageArray:
    """Draw the masks on their frame: a closed edge, and a dashed one where a mask is stale.

    Args:
        result: one frame.
        status: the last line of the strip, such as rates.
        rows: lines of phrases on the strip; None: as many as there are phrases. Of further phrases only the
            masks are drawn.

    Returns:
        [y, x, 3], small frames enlarged by a whole factor.

    Raises:
        MissingDependencyError: OpenCV is not installed.
    """
    with require_camera("an overlay"):
        import cv2

    pixels = result.frame.pixels
    factor = max(1, math.ceil(LEAST_SIDE / max(pixels.shape[:2])))
    size_xy = (pixels.shape[1] * factor, pixels.shape[0] * factor)
    image: ImageArray = pixels.copy()
    if factor > 1:
        image = np.asarray(cv2.resize(pixels, size_xy, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    thickness = max(2, round(max(size_xy) / 320))
    for at, target in enumerate(result.targets):
        if target.mask is not None:
            mask = np.kron(target.mask, np.ones((factor, factor), np.bool_)) if factor > 1 else target.mask
            _draw_mask(image, mask, COLORS[at % len(COLORS)], thickness, dashed=target.state == "stale")
    return _add_strip(image, result.targets, status, len(result.targets) if rows is None else rows)


def describe(target: TargetResult) -> str:
    """Return one line: the phrase, its state, the mask's age and origin, the confidence, or the reason."""
    parts: list[str] = [target.state]
    if target.age_s is not None:
        parts.append(f"{1000 * target.age_s:.0f} ms")
    if target.origin is not None and target.origin != target.state:
        parts.append(target.origin)
    if target.confidence is not None:
        parts.append(f"confidence {target.confidence:.2f}")
    elif target.score is not None and target.mask is not None:
        parts.append(f"score {target.score:.2f}")
    if target.reason:
        parts.append(target.reason)
    return f"{target.phrase}: {', '.join(parts)}"


def _draw_mask(
    image: ImageArray, mask: Bool, color: tuple[int, int, int], thickness: int, *, dashed: bool
) -> None:
    import cv2

    image[mask] = ((1 - _TINT) * image[mask] + _TINT * np.array(color)).astype(np.uint8)
    edges, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if dashed:
        step = _DASH * thickness
        edges = [edge[at : at + step] for edge in edges for at in range(0, len(edge), 2 * step)]
    for line, width in ((_CASING, thickness + 2), (color, thickness)):
        cv2.polylines(image, edges, not dashed, line, width, cv2.LINE_AA)


def _add_strip(image: ImageArray, targets: Sequence[TargetResult], status: str, rows: int) -> ImageArray:
    """Put one line per phrase in its color, and the status, on a dark strip below the image."""
    width = image.shape[1]
    letters = max(12, round(width / 48))
    line_px, margin = round(letters * 1.4), letters // 2
    font = ImageFont.load_default(letters)
    strip = Image.new("RGB", (width, (rows + 1) * line_px + margin), _STRIP)
    draw = ImageDraw.Draw(strip)
    lines = [(describe(each), COLORS[at % len(COLORS)]) for at, each in enumerate(targets[:rows])]
    lines += [("", _STATUS)] * (rows - len(lines)) + [(status, _STATUS)]
    for at, (text, color) in enumerate(lines):
        while text and font.getlength(text) > width - 2 * margin:
            text = f"{text[:-2]}…"
        draw.text((margin, margin // 2 + at * line_px), text, font=font, fill=color)
    return np.concatenate([image, np.asarray(strip)])
