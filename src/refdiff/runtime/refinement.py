"""Masks of a caller's own prompt (docs/architecture.md, "Prompts").

Axes: m = 3 masks, l = side of their logits, y/x = image rows/columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from refdiff.contracts.prompt_vectors import PromptVectors
from refdiff.contracts.session import Bool, Feed, Float, ImageArray, SessionFactory, to_host
from refdiff.contracts.spec import SamSpec
from refdiff.errors import InputError
from refdiff.runtime.mask_decoder import MASK_THRESHOLD, MaskDecoder
from refdiff.runtime.overlay import draw_answer
from refdiff.runtime.prompt import Prompt, mask_embedding, place_tokens
from refdiff.runtime.resize import MaskResize, sam_size
from refdiff.runtime.segmentation import mask_box, save_mask

_POOR_IOU = 0.5
"""Predicted IoU below which the answer says so: SAM's automatic mode drops masks below 0.88."""


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """The answer to one prompt: SAM's three masks, best predicted IoU first."""

    masks: Bool
    """[m, y, x]: SAM offers a part, a thing and a whole; a box or several points leave little to choose."""
    predicted_iou: Float
    """[m]: what SAM expects each mask's IoU to be, about 0..1."""
    low_res: Float
    """[m, l, l]: the masks' logits in SAM's square; `logits` are the best mask's."""
    cautions: tuple[str, ...] = ()
    """Why the mask may be wrong: one line each, `topic: statement`."""
    image: ImageArray | None = field(default=None, repr=False)
    """[y, x, 3]: the image's pixels."""

    @property
    def mask(self) -> Bool:
        """The best mask, [y, x]; it may be empty."""
        return np.asarray(self.masks[0])

    @property
    def logits(self) -> Float:
        """The best mask's logits, [l, l]: pass them as `mask` to refine it with further points."""
        return np.asarray(self.low_res[0])

    @property
    def area(self) -> int:
        """Pixels of the best mask."""
        return int(np.count_nonzero(self.mask))

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """The best mask's box x0, y0, x1, y1 in px, its end excluded; None if the mask is empty."""
        return mask_box(self.mask)

    def overlay(self) -> ImageArray:
        """Draw the best mask on the image.

        Returns:
            [y, x, 3] uint8 RGB, a small image enlarged.

        Raises:
            InputError: the answer was made without an image.
        """
        if self.image is None:
            raise InputError("the answer has no image to draw on; use `refdiff.load` and `refine`")
        caption = f"predicted IoU {self.predicted_iou[0]:.2f}"
        return draw_answer(self.image, self.mask, caption=caption, note=". ".join(self.cautions))

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write the best mask as a PNG of the image's size, 255 inside and 0 outside; whole or not at all.

        Raises:
            InputError: the name does not end in .png, something is there, or the disk is read-only or full.
        """
        save_mask(self.mask, path, overwrite=overwrite)


class Refiner:
    """Segments a caller's own prompts with the graphs `sam_encoder`, `sam_decoder` and `sam_masks`.

    Args:
        sessions: opens the graphs.
        spec: SAM's sizes.
        vectors: of SAM's prompt encoder.
    """

    def __init__(self, sessions: SessionFactory, spec: SamSpec, vectors: PromptVectors) -> None:
        self._decoder = MaskDecoder(sessions, spec)
        self._spec = spec
        self._vectors = vectors

    def refine(
        self, image: ImageArray, prompt: Prompt, mask: Float | None, embedding: Feed | None = None
    ) -> Refinement:
        """Return the masks of one prompt.

        Args:
            image: [y, x, 3] RGB.
            prompt: what to segment.
            mask: [l, l], logits of an earlier answer.
            embedding: SAM's, of the image; None, or one that a device has overwritten: the encoder runs.

        Raises:
            EngineError: a graph failed or returned values that are not finite.
        """
        spec, size_yx = self._spec, (image.shape[0], image.shape[1])
        resized_yx = sam_size(size_yx, spec.image_size)
        scale = np.array(resized_yx[::-1]) / np.array(size_yx[::-1])  # as SAM's ResizeLongestSide
        places = np.asarray(prompt.places * scale, dtype=np.float32)
        tokens = place_tokens(self._vectors, places[None], prompt.labels[None])
        known = self._embedding(image, embedding)
        if mask is not None:
            known = to_host(known) + mask_embedding(self._vectors, mask) - self._no_mask()
        ((low_res, predicted),) = self._decoder.decode(known, tokens)
        best = np.argsort(-predicted, kind="stable")
        resize = MaskResize(
            low_res=spec.low_res_size, square=spec.image_size, resized_yx=resized_yx, size_yx=size_yx
        )
        masks = np.concatenate([each > MASK_THRESHOLD for _, each in resize.bands(low_res[best])], axis=1)
        return Refinement(
            masks=masks,
            predicted_iou=predicted[best],
            low_res=low_res[best],
            cautions=_cautions(masks[0], float(predicted[best[0]])),
            image=image,
        )

    def _embedding(self, image: ImageArray, embedding: Feed | None) -> Feed:
        try:
            return self._decoder.embed(image) if embedding is None else to_host(embedding)
        except InputError:  # the device's buffer has been overwritten since
            return self._decoder.embed(image)

    def _no_mask(self) -> Float:
        return self._vectors.no_mask[:, None, None]


def _cautions(mask: Bool, predicted_iou: float) -> tuple[str, ...]:
    if not mask.any():
        return ("mask: SAM found nothing at this prompt",)
    if predicted_iou < _POOR_IOU:
        return (f"mask: SAM expects an IoU of only {predicted_iou:.2f}",)
    return ()
