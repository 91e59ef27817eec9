"""A recorded answer: an image, a phrase, and what the bundle made of them when it was written.

The golden tensors cover the graphs. The answer covers the code between them: tokenizer, resizing, crops and
scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.session import Array, Bool, Float, ImageArray

PARTS = ("hard", "soft", "generative")
"""Parts of the score that are recorded, of the candidate that was chosen."""


@dataclass(frozen=True, kw_only=True)
class GoldenAnswer:
    """The answer to one phrase on one image; y, x are the image's rows and columns."""

    image: ImageArray
    """[y, x, 3] RGB, 0..255."""
    phrase: str
    variant: str
    ids: NDArray[np.int32]
    """[context], the phrase's tokens as the diffusion model gets them."""
    mask: Bool
    """[y, x]; all False if nothing was found."""
    heat: Float
    """[y, x], 0..1, at half precision."""
    parts: Float
    """[3], the `PARTS` of the chosen candidate's score; all 0 if nothing was found."""

    def to_arrays(self) -> dict[str, Array]:
        """Return what is stored; the mask takes one bit per pixel."""
        return {
            "image": self.image,
            "phrase": np.array(self.phrase),
            "variant": np.array(self.variant),
            "ids": self.ids,
            "mask": np.packbits(self.mask, axis=1),
            "heat": self.heat.astype(np.float16),
            "parts": self.parts,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> GoldenAnswer:
        """Read what `to_arrays` returned.

        Raises:
            KeyError: an array is missing.
            ValueError: an array has another dtype or shape, or holds values that are not finite.
        """
        image = _checked(arrays, "image", "uint8", 3)
        height, width, channels = image.shape
        packed = _checked(arrays, "mask", "uint8", 2)
        heat = _checked(arrays, "heat", "float16", 2).astype(np.float32)
        parts = _checked(arrays, "parts", "float32", 1)
        shapes = (channels, packed.shape, heat.shape, parts.shape)
        if shapes != (3, (height, -(-width // 8)), (height, width), (len(PARTS),)) or not image.size:
            raise ValueError(f"mask, heat or parts do not fit the image {image.shape}")
        return cls(
            image=image,
            phrase=_text(arrays, "phrase"),
            variant=_text(arrays, "variant"),
            ids=_checked(arrays, "ids", "int32", 1),
            mask=np.unpackbits(packed, axis=1, count=width).astype(bool),
            heat=heat,
            parts=parts,
        )


def _checked(arrays: Mapping[str, Array], name: str, dtype: str, rank: int) -> Array:
    array = arrays[name]
    if array.dtype.name != dtype or array.ndim != rank:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {dtype} of rank {rank}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
    return array


def _text(arrays: Mapping[str, Array], name: str) -> str:
    array = arrays[name]
    if array.dtype.kind != "U" or array.ndim:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, expected one text")
    return str(array)
