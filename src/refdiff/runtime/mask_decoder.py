"""SAM on the graphs `sam_encoder`, `sam_decoder` and `sam_masks`: an image and prompts in, masks out.

Axes: n = prompts, q = tokens of a prompt, c = embedding channels, k = masks, l = side of their logits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refdiff.contracts.graphs import POINT_TOKENS, POINTS_PER_BATCH, POINTS_PER_DRAWING, PROMPTS_PER_BATCH
from refdiff.contracts.session import Array, Bool, Feed, Float, ImageArray, SessionFactory, to_host
from refdiff.contracts.spec import SamSpec
from refdiff.errors import EngineError
from refdiff.runtime.resize import sam_input

MASK_THRESHOLD = 0.0  # segment_anything.modeling.Sam.mask_threshold


class MaskDecoder:
    """Encodes an image once, and decodes masks for any prompts.

    Args:
        sessions: opens the graphs.
        spec: SAM's sizes.
    """

    def __init__(self, sessions: SessionFactory, spec: SamSpec) -> None:
        self._sessions = sessions
        self._spec = spec

    def embed(self, image: ImageArray) -> Feed:
        """Return SAM's embedding of an image; on a device it stays there, valid until the encoder runs again.

        Raises:
            EngineError: the graph failed or returned values that are not finite.
        """
        pixels, _ = sam_input(image, self._spec)
        embedding = self._sessions.open("sam_encoder").run({"image": pixels}, keep_on_device=True)[
            "embedding"
        ]
        if isinstance(embedding, np.ndarray):  # one on the device is checked by what the decoder makes of it
            _check_finite("sam_encoder", embedding)
        return embedding

    def decode(
        self, embedding: Feed, tokens: Float, *, above: float = 0.0, every: bool = False
    ) -> Iterator[tuple[Float, Float]]:
        """Yield low-resolution logits [k, l, l] and predicted IoU [k] of the masks above an IoU threshold.

        SAM applies the threshold to masks at the image's size. Here it decides which masks are decoded, and
        which of them are upsampled.

        Args:
            embedding: from `embed`.
            tokens: [n, q, c], from `prompt`.
            above: threshold of the predicted IoU; 0 is none, as in SAM.
            every: run `sam_masks` on every prompt, also on those without a mask above the threshold.

        Raises:
            EngineError: a graph failed or returned values that are not finite.
        """
        decoder, mask_decoder = self._sessions.open("sam_decoder"), self._sessions.open("sam_masks")
        are_points = len(tokens) > 1 and tokens.shape[1] == POINT_TOKENS
        most = POINTS_PER_BATCH if are_points else PROMPTS_PER_BATCH
        for start in range(0, len(tokens), most):
            batch = tokens[start : start + most]
            fed = _fill(batch) if are_points else batch
            decoded = dict(decoder.run({"embedding": embedding, "prompts": fed}, keep_on_device=True))
            iou = to_host(decoded.pop("iou"))
            if not np.isfinite(iou).all():
                _check_finite("sam_encoder", to_host(embedding))  # name the graph where it begins
                raise _not_finite("sam_decoder")
            iou = iou[: len(batch)]
            good = _is_above(iou, above)  # [n, 3]
            rows = np.arange(len(batch)) if every else np.flatnonzero(good.any(axis=1))
            for first in range(0, len(rows), POINTS_PER_DRAWING):
                chosen = rows[first : first + POINTS_PER_DRAWING]
                low_res = mask_decoder.run({**decoded, "chosen": chosen.astype(np.int32)})["low_res"]
                _check_finite("sam_masks", low_res)
                yield low_res[good[chosen]], iou[chosen][good[chosen]]


def _fill(tokens: Float) -> Float:
    """Repeat the last point up to 64: plans are built for this one size. Its masks are dropped."""
    return np.concatenate([tokens, np.repeat(tokens[-1:], POINTS_PER_BATCH - len(tokens), axis=0)])


def _is_above(predicted_iou: Float, threshold: float) -> Bool:
    if threshold <= 0:
        return np.ones(predicted_iou.shape, dtype=np.bool_)
    return np.asarray(predicted_iou > threshold)


def _check_finite(graph: str, values: Array) -> None:
    """Refuse NaN: it passes no threshold, so a broken engine would look like an image without objects."""
    if not np.isfinite(values).all():
        raise _not_finite(graph)


def _not_finite(graph: str) -> EngineError:
    return EngineError(f"{graph} returned values that are not finite; find where: refdiff check BUNDLE")
