"""A textured disc that moves over a textured table: frames with exact masks, for tests of following masks."""

import cv2
import numpy as np

from refdiff.camera.frame import Frame
from refdiff.camera.small_frame import SmallFrame, shrink
from refdiff.runtime.segmentation import Segmentation

SIZE_YX = 180, 240
RATE = 30.0


def texture(seed, size_yx=SIZE_YX, blur=2.0):
    """[y, x, 3] uint8: smooth noise in three colors, over the whole range."""
    noise = np.random.default_rng(seed).integers(0, 255, (*size_yx, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), blur), None, 0, 255, cv2.NORM_MINMAX)


class MovingPatch:
    """Discs over a table; a disc is drawn at (x, y), turned and enlarged."""

    def __init__(self, seed=0, radius=34, look=None, table=None):
        self.table = texture(seed) if table is None else table
        self.radius = radius
        self.look = texture(seed + 1, (2 * radius + 1,) * 2) if look is None else look

    def draw(self, number, *discs, noise=3):
        """Return the frame and the visible mask of each disc (x, y, angle, scale, look or None)."""
        pixels, masks = self.table.copy(), []
        for x, y, angle, scale, look in discs:
            look = self.look if look is None else look
            middle = self.radius
            matrix = cv2.getRotationMatrix2D((middle, middle), -angle, scale)
            matrix[:, 2] += (x - middle, y - middle)
            size_xy = pixels.shape[1::-1]
            moved = cv2.warpAffine(look, matrix, size_xy, borderMode=cv2.BORDER_REPLICATE)
            disc = np.zeros(look.shape[:2], np.uint8)
            cv2.circle(disc, (middle, middle), middle, 255, -1)
            mask = cv2.warpAffine(disc, matrix, size_xy) > 127
            pixels[mask] = moved[mask]
            masks = [*(each & ~mask for each in masks), mask]
        grain = np.random.default_rng(number).integers(-noise, noise + 1, pixels.shape)
        pixels = np.clip(pixels.astype(int) + grain, 0, 255).astype(np.uint8)
        return frame_of(pixels, number), masks

    def moving(self, count, step_xy=(3.0, 1.0), start_xy=(60.0, 70.0), turn=1.5, first=0):
        """Return frames and masks of one disc that moves evenly."""
        drawn = [
            self.draw(
                first + index,
                (start_xy[0] + step_xy[0] * index, start_xy[1] + step_xy[1] * index, turn * index, 1.0, None),
            )
            for index in range(count)
        ]
        return [frame for frame, _ in drawn], [masks[0] for _, masks in drawn]


def frame_of(pixels, number):
    seconds = number / RATE
    return Frame(source="test", number=number, pixels=pixels, captured_s=seconds, wall_s=seconds)


def small_of(frame) -> SmallFrame:
    return shrink(frame)


def answer_of(mask, confidence=0.9, image=None, reason=None) -> Segmentation:
    """An answer with this mask, or with none and a reason."""
    return Segmentation(
        phrase="the disc",
        root="disc",
        mask=np.zeros(SIZE_YX, np.bool_) if mask is None else mask,
        index=None if mask is None else 0,
        score=float("-inf") if mask is None else confidence,
        scores=None,
        heat=None,
        candidates=None,
        reason=reason,
        confidence=confidence,
        image=image,
    )
