"""An oversampled canvas that one object is painted on.

In: the object's extent, diameter, colour and light side. Out: an antialiased `Sprite`.

Axes: y/x = canvas rows/columns. Drawing coordinates are in diameters of the object: x to the right of its
standing point, y up from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Float: TypeAlias = NDArray[np.float32]
Bool: TypeAlias = NDArray[np.bool_]
Colour: TypeAlias = tuple[float, float, float]
Points: TypeAlias = Sequence[tuple[float, float]]

OVERSAMPLING = 3


@dataclass(frozen=True)
class Sprite:
    """A drawn object, at final resolution.

    Attributes:
        rgb: [y, x, 3] float32, 0..1, premultiplied by `alpha`.
        alpha: [y, x] float32, 0..1, covered share of each pixel.
        foot_xy: its standing point, px on the canvas.
    """

    rgb: Float
    alpha: Float
    foot_xy: tuple[float, float]


@dataclass(frozen=True)
class Extent:
    """The distances a shape covers from its standing point, in diameters."""

    half_width: float
    height: float
    shadow: float


class Canvas:
    """An oversampled canvas that the parts of an object are painted on, back to front.

    Attributes:
        x: [1, x] in diameters, to the right of the standing point.
        y: [y, 1] in diameters, up from the standing point.
        light: -1 if light falls from the left, +1 if from the right.
        colour: base RGB, 0..1.
    """

    def __init__(self, extent: Extent, diameter_px: float, colour: Colour, light: float) -> None:
        """Create a canvas that holds `extent` with a margin of one pixel on each side."""
        half = int(np.ceil(extent.half_width * diameter_px)) + 1
        tall = int(np.ceil(extent.height * diameter_px)) + 1
        self.light = light
        self.colour = colour
        self.foot_xy = (float(half), float(tall))
        self._scale = diameter_px * OVERSAMPLING
        self._origin = (half * OVERSAMPLING, tall * OVERSAMPLING)
        size_yx = ((tall + 1) * OVERSAMPLING, 2 * half * OVERSAMPLING)
        columns = np.arange(size_yx[1], dtype=np.float32) + np.float32(0.5)
        rows = np.arange(size_yx[0], dtype=np.float32) + np.float32(0.5)
        self.x: Float = ((columns - self._origin[0]) / self._scale)[None, :]
        self.y: Float = ((self._origin[1] - rows) / self._scale)[:, None]
        self._rgb = np.zeros((*size_yx, 3), np.float32)
        self._alpha = np.zeros(size_yx, np.bool_)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float) -> Bool:
        """Return the mask [y, x] of an upright ellipse."""
        inside: Bool = ((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2 <= 1.0
        return inside

    def polygon(self, points: Points) -> Bool:
        """Return the mask [y, x] of a polygon."""
        height, width = self._alpha.shape
        image = Image.new("L", (width, height))
        corners = [(self._origin[0] + x * self._scale, self._origin[1] - y * self._scale) for x, y in points]
        ImageDraw.Draw(image).polygon(corners, fill=1)
        return np.asarray(image).astype(np.bool_)

    def paint(
        self,
        mask: Bool,
        shade: NDArray[np.floating] | float = 1.0,
        gloss: NDArray[np.floating] | float = 0.0,
        colour: Colour | None = None,
    ) -> None:
        """Cover `mask` with `colour * shade + gloss`.

        Args:
            mask: [y, x].
            shade: about 0.3 (paint_revolved away from the light) to 1.2 (facing it); broadcasts to [y, x].
            gloss: white light added on top, 0..1; broadcasts to [y, x].
            colour: RGB, 0..1; None: the object's colour.
        """
        light = np.broadcast_to(np.asarray(shade, np.float32), mask.shape)[mask][:, None]
        shine = np.broadcast_to(np.asarray(gloss, np.float32), mask.shape)[mask][:, None]
        base = np.asarray(self.colour if colour is None else colour, np.float32)
        self._rgb[mask] = base * light + shine
        self._alpha |= mask

    def paint_revolved(self, profile: Points, tilt: float, gloss: float = 0.3) -> None:
        """Paint a body of revolution.

        Args:
            profile: `(height, radius)` pairs, lowest first.
            tilt: roundness of the foot, 0 (seen from the side) to 1 (seen from above).
            gloss: strength of the highlight, 0..1.
        """
        heights = np.array([p[0] for p in profile], np.float32)
        radii = np.array([p[1] for p in profile], np.float32)
        foot = float(radii[0]) * tilt
        radius = np.interp(self.y - foot, heights, radii).astype(np.float32)  # [y, 1]
        u = np.clip(self.x / radius, -1.0, 1.0)  # [y, x]
        mask = (np.abs(self.x) <= radius) & (self.y >= foot) & (self.y <= foot + heights[-1])
        mask |= self.ellipse(0.0, foot, float(radii[0]), foot)
        facing = 0.62 * self.light * u + 0.78 * np.sqrt(1.0 - u * u)
        shine = gloss * np.exp(-(((u - 0.45 * self.light) / 0.13) ** 2))
        self.paint(mask, 0.42 + 0.66 * np.maximum(facing, 0.0), shine)

    def to_sprite(self) -> Sprite:
        """Return the canvas at final resolution."""
        step, cells = OVERSAMPLING, np.float32(OVERSAMPLING * OVERSAMPLING)
        rgb = np.zeros_like(self._rgb[::step, ::step])
        alpha = np.zeros(rgb.shape[:2], np.float32)
        for offset in np.ndindex(step, step):
            rgb += self._rgb[offset[0] :: step, offset[1] :: step]
            alpha += self._alpha[offset[0] :: step, offset[1] :: step]
        return Sprite(np.minimum(rgb / cells, np.float32(1.0)), alpha / cells, self.foot_xy)
