"""The vectors of SAM's prompt encoder, which runs on the host (`runtime.prompt`).

They are learned with the model, so each bundle has its own (docs/architecture.md, "Prompts").

Axes: c = embedding channels, h = channels of the mask's first layer, k = channels of its second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refdiff.contracts.session import Array, Float
from refdiff.contracts.spec import SamSpec

LABELS = 4
"""Kinds of places in a prompt, in the order of `PromptVectors.labels`."""

NORM_EPS = 1e-6
"""Epsilon of the mask layers' norms: segment_anything.modeling.common.LayerNorm2d."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskLayer:
    """One layer of the encoder of mask prompts: a product over pixels, then a norm over channels."""

    product: Float
    """[inputs, outputs]; the inputs are 2 x 2 pixels by row, column and channel, or one pixel."""
    bias: Float
    """[outputs]."""
    scale: Float | None = None
    """[outputs]; None: no norm and no activation follow."""
    shift: Float | None = None
    """[outputs]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptVectors:
    """Everything that makes tokens of places, and an image-sized embedding of a mask."""

    side: int
    """Side in px of the square that the frequencies refer to: SAM's input, 1024."""
    frequencies: Float
    """[2, c / 2]: of x and y in -1..1, in turns."""
    labels: Float
    """[4, c]: negative point, positive point, a box's first corner, its last corner."""
    not_a_point: Float
    """[c]: the padding of a prompt without a box."""
    no_mask: Float
    """[c]: what the graph `sam_decoder` adds to every cell of the embedding; it stands for "no mask"."""
    mask_layers: tuple[MaskLayer, MaskLayer, MaskLayer]
    """Low-resolution logits -> [c] per cell of the embedding: [4, h], [4 h, k] and [k, c]."""

    def to_arrays(self) -> dict[str, Array]:
        """Return what is stored."""
        arrays: dict[str, Array] = {"side": np.array(self.side, dtype=np.int32)}
        arrays |= {name: getattr(self, name) for name in ("frequencies", "labels", "not_a_point", "no_mask")}
        for index, layer in enumerate(self.mask_layers):
            for name in ("product", "bias", "scale", "shift"):
                if (array := getattr(layer, name)) is not None:
                    arrays[f"mask.{index}.{name}"] = array
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], sam: SamSpec) -> PromptVectors:
        """Read what `to_arrays` returned.

        Raises:
            KeyError: an array is missing.
            ValueError: an array has another dtype or shape than these sizes need, or is not finite.
        """
        c = sam.embed_channels
        side = arrays["side"]
        if side.dtype != np.int32 or side.shape or not 1 <= side <= 1 << 16:
            raise ValueError(f"side is {side.dtype} {side.shape}, expected an int32 from 1 to 65536")
        first, second = (arrays[f"mask.{index}.bias"].size for index in range(2))
        sizes = ((4, first), (4 * first, second), (second, c))
        return cls(
            side=int(side),
            frequencies=_checked(arrays, "frequencies", 2, c // 2),
            labels=_checked(arrays, "labels", LABELS, c),
            not_a_point=_checked(arrays, "not_a_point", c),
            no_mask=_checked(arrays, "no_mask", c),
            mask_layers=(
                _layer(arrays, "mask.0", *sizes[0], normed=True),
                _layer(arrays, "mask.1", *sizes[1], normed=True),
                _layer(arrays, "mask.2", *sizes[2], normed=False),
            ),
        )


def _layer(arrays: Mapping[str, Array], name: str, inputs: int, outputs: int, *, normed: bool) -> MaskLayer:
    return MaskLayer(
        product=_checked(arrays, f"{name}.product", inputs, outputs),
        bias=_checked(arrays, f"{name}.bias", outputs),
        scale=_checked(arrays, f"{name}.scale", outputs) if normed else None,
        shift=_checked(arrays, f"{name}.shift", outputs) if normed else None,
    )


def _checked(arrays: Mapping[str, Array], name: str, *shape: int) -> Float:
    array = arrays[name]
    if array.dtype != np.float32 or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, expected float32 {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
    return array
