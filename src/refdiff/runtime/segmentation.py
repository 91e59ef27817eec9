"""The answer to a phrase, and what a program does with it: box, area, COCO annotation, overlay, file.

Axes: y/x = image rows/columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.contracts.atomic_io import write_files
from refdiff.contracts.results import Candidates, Scores
from refdiff.contracts.session import Bool, Float, ImageArray
from refdiff.errors import InputError, MissingDependencyError
from refdiff.runtime.image import png
from refdiff.runtime.masks import boxes, compress_coco_rle, to_coco_rle
from refdiff.runtime.overlay import draw_answer

NOT_CALIBRATED = (
    "confidence: not calibrated; the best candidate is returned even if nothing in the image fits the phrase"
)
"""The caution of every mask until its score is a calibrated confidence."""


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The answer to one phrase on one image: the best candidate, whether or not anything fits.

    It holds masks and heatmap at the image's size, up to n + 5 bytes per pixel for n candidates, and refers
    to the pixels of the encoded image, which it keeps in memory: keep `mask` alone if you keep many.
    """

    phrase: str
    root: str
    """The head word that was found in the phrase."""
    mask: Bool
    """[y, x]; all False if no candidate could be chosen."""
    index: int | None
    """The chosen candidate, or None."""
    score: float
    """`scores.total[index]`, or -inf."""
    scores: Scores
    heat: Float | None
    """[y, x], 0..1: the heatmap; None in mode `disc+seg`."""
    candidates: Candidates
    reason: str | None = None
    """Reason why no candidate could be chosen; None if one was."""
    confidence: float | None = None
    """Calibrated probability that the mask is right, 0..1; None until a calibration exists."""
    cautions: tuple[str, ...] = ()
    """Why the mask may be wrong: one line each, `topic: statement` or `topic: statement; detail`."""
    image: ImageArray | None = field(default=None, repr=False)
    """[y, x, 3]: the encoded image's pixels, not a copy; None if the answer was made without."""

    @property
    def matched(self) -> bool:
        """Whether a mask was returned. It does not mean that the mask shows what the phrase names."""
        return self.index is not None

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.mask))

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """The mask's box x0, y0, x1, y1 in px, its end excluded: `image[y0:y1, x0:x1]` is the cut-out.

        None if the mask is empty. `candidates.boxes_xyxy_px` and the JSON have inclusive corners.
        """
        return mask_box(self.mask)

    def to_coco(self, *, image_id: int, annotation_id: int, category_id: int = 1) -> dict[str, Any]:
        """Return the mask as an annotation of a COCO file, as pycocotools reads it; JSON-ready.

        Raises:
            InputError: there is no mask.
        """
        if self.box is None:
            raise InputError(f"{self.phrase!r} has no mask ({self.reason}); read `matched` before")
        x0, y0, x1, y1 = self.box
        return {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": category_id,
            "segmentation": compress_coco_rle(to_coco_rle(self.mask)),
            "area": self.area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
            "score": self.score,
            "caption": self.phrase,
        }

    def to_detections(self) -> Any:
        """Return the answer as `supervision.Detections`: one object, or none without a mask.

        Its confidence is ours, or else the score; `class_id` is 0, and `data["class_name"]` the phrase.

        Raises:
            MissingDependencyError: the package supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "detections need the package supervision; install it with: pip install supervision"
            ) from error
        if self.box is None:
            return supervision.Detections.empty()
        sure = self.score if self.confidence is None else self.confidence
        return supervision.Detections(
            xyxy=np.array([self.box], dtype=np.float64),
            mask=self.mask[None],
            confidence=np.array([sure], dtype=np.float64),
            class_id=np.array([0]),
            data={"class_name": np.array([self.phrase])},
        )

    def overlay(self) -> ImageArray:
        """Draw the mask on the image, with phrase, score and cautions on a strip below.

        Returns:
            [y, x, 3] uint8 RGB, a small image enlarged.

        Raises:
            InputError: the answer was made without an image.
        """
        if self.image is None:
            raise InputError("the answer has no image to draw on; use `refdiff.load` and `segment`")
        sure = "" if self.confidence is None else f", confidence {self.confidence:.2f}"
        caption = f"{self.phrase} (best candidate, score {self.score:.3f}{sure})"
        if not self.matched:
            caption = f"{self.phrase}: no mask, {self.reason}"
        # The statement of each caution, without its detail.
        note = ". ".join(caution.split(";")[0] for caution in self.cautions)
        return draw_answer(self.image, self.mask, caption=caption, note=note)

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write the mask as a PNG of the image's size, 255 inside and 0 outside; whole or not at all.

        Raises:
            InputError: the name does not end in .png, something is there, or the disk is read-only or full.
        """
        save_mask(self.mask, path, overwrite=overwrite)


def mask_box(mask: Bool) -> tuple[int, int, int, int] | None:
    """Return the box x0, y0, x1, y1 of a mask [y, x] in px, its end excluded; None if it is empty."""
    if not mask.any():
        return None
    x0, y0, x1, y1 = (int(side) for side in boxes(mask[None])[0])
    return x0, y0, x1 + 1, y1 + 1


def save_mask(mask: Bool, path: Path | str, *, overwrite: bool = False) -> None:
    """Write a mask [y, x] as a PNG, 255 inside and 0 outside; whole or not at all.

    Raises:
        InputError: the name does not end in .png, something is there, or the disk is read-only or full.
    """
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"got output {path}, expected a name that ends in .png; name it mask.png")
    write_files({Path(path): png(mask.astype(np.uint8) * np.uint8(255))}, overwrite=overwrite)
