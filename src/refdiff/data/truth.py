"""True masks as data sets store them: COCO polygons and run lengths, mask images, painted shapes.

Each source is decoded at the resolution of the image (METHOD §11). Decoding needs the extra `eval`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refdiff.contracts.optional import install_line
from refdiff.contracts.session import Bool
from refdiff.data.sample import Truth
from refdiff.errors import InputError, MissingDependencyError

_POLYGON_NUMBERS = 6
"""Numbers of the smallest polygon with an area: three corners."""


@contextmanager
def require_eval(purpose: str) -> Iterator[None]:
    """Turn a missing package of the extra `eval` into an error that says what to install.

    Args:
        purpose: what the import is for, the subject of the message.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{purpose} needs {error.name}, which is not installed; {install_line('eval')}"
        ) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotatedTruth:
    """The union of COCO annotations; without any, the phrase refers to nothing."""

    name: str
    """For messages."""
    segmentations: Sequence[Any]
    """Of each annotation: a list of polygons [x, y, x, y, ...], or run lengths {"size", "counts"}."""
    size_yx: tuple[int, int]

    def read(self) -> Truth:
        """Decode the annotations and join them.

        Raises:
            InputError: an annotation cannot be decoded, or has another size.
            MissingDependencyError: pycocotools is not installed.
        """
        mask = np.zeros(self.size_yx, dtype=np.bool_)
        try:
            for segmentation in self.segmentations:
                mask |= decode_segmentation(segmentation, self.size_yx)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error
        return Truth(mask=mask)


def decode_segmentation(segmentation: Any, size_yx: tuple[int, int]) -> Bool:
    """Decode the `segmentation` of a COCO annotation with pycocotools.

    Args:
        segmentation: polygons, whose union counts, or run lengths, compressed or not.
        size_yx: height and width of the image in px.

    Returns:
        [y, x].

    Raises:
        InputError: it is neither, or has another size.
        MissingDependencyError: pycocotools is not installed.
    """
    with require_eval("decoding the masks of a data set"):
        from pycocotools import mask as coco
    height, width = size_yx
    try:
        if not isinstance(segmentation, Mapping):
            polygons = [each for each in segmentation if len(each) >= _POLYGON_NUMBERS]
            if not polygons:
                raise InputError("the annotation has no polygon with an area; correct or remove it")
            encoded = coco.merge(coco.frPyObjects(polygons, height, width))
        elif tuple(segmentation["size"]) != size_yx:
            raise InputError(
                f"the mask is {tuple(segmentation['size'])} px (height, width), the image {size_yx}; correct "
                "the annotation"
            )
        elif isinstance(segmentation["counts"], list):
            encoded = coco.frPyObjects(segmentation, height, width)
        else:
            encoded = segmentation
        return np.asarray(coco.decode(encoded), dtype=np.bool_)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise InputError(
            f"the annotation cannot be decoded ({error}); expected polygons or run lengths"
        ) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskFile:
    """A mask image: pixels that are not 0 belong to the object."""

    path: Path

    def read(self) -> Truth:
        """Read the file.

        Raises:
            InputError: it cannot be read.
        """
        try:
            with Image.open(self.path, formats=("PNG", "BMP", "TIFF", "PPM")) as image:
                bands = np.asarray(image.convert("L") if image.mode == "P" else image)
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"mask {self.path} cannot be read ({error}); expected a PNG file") from error
        colors = bands[..., :3] if bands.ndim == 3 else bands[..., None]  # an alpha channel is no mask
        return Truth(mask=np.any(colors != 0, axis=2))


@dataclass(frozen=True, kw_only=True, eq=False)
class PaintedTruth:
    """Shapes of ReasonSeg, painted largest first as LISA's evaluation does (`get_mask_from_json`).

    Outlines count, later shapes cover earlier ones, and pixels of a shape labeled "ignore" do not count.
    """

    name: str
    shapes: Sequence[Mapping[str, Any]]
    """Each with `label` and `points` [[x, y], ...]."""
    size_yx: tuple[int, int]

    def read(self) -> Truth:
        """Paint the shapes.

        Raises:
            InputError: a shape has no label or points.
            MissingDependencyError: OpenCV is not installed.
        """
        with require_eval("painting the shapes of ReasonSeg"):
            import cv2
        canvas = np.zeros(self.size_yx, dtype=np.uint8)
        painted: list[tuple[int, Bool, bool]] = []
        for shape in self.shapes:
            try:
                label = str(shape["label"]).lower()
                points = np.asarray([shape["points"]], dtype=np.float64).astype(np.int32)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{self.name} has a shape that cannot be read ({error!r})") from error
            if label == "flag" or points.size == 0:
                continue
            one = np.zeros(self.size_yx, dtype=np.uint8)
            cv2.polylines(one, [*points], isClosed=True, color=(1,), thickness=1)
            cv2.fillPoly(one, [*points], color=(1,))
            painted.append((int(one.sum()), one.astype(np.bool_), "ignore" in label))
        for _, area, ignored in sorted(painted, key=lambda each: each[0])[::-1]:
            canvas[area] = 2 if ignored else 1
        return Truth(mask=canvas == 1, ignored=canvas == 2)
