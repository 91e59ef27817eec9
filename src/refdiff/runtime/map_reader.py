"""Read the heatmap of a phrase from the attention logits of the UNet's passes.

METHOD §4.5 and §4.6 are the release's; §10.8 to §10.12 are other readings.

Axes: p = passes, l = tapped layers, q = query cells = g*g, t = tokens, g = grid side, m = maps, passes first,
y/x = image rows/columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refdiff.contracts.options import AttentionOptions, Options
from refdiff.contracts.session import Float
from refdiff.contracts.spec import DiffusionSpec
from refdiff.errors import InputError
from refdiff.runtime.diffusion import (
    affinity,
    heatmap_on_image,
    mean_map,
    normalize_maps,
    propagate,
    scale_maps,
    share_maps,
)
from refdiff.runtime.phrase import Phrase
from refdiff.runtime.resize import upsample_bilinear
from refdiff.runtime.spatial import heat_ramp
from refdiff.runtime.tokenizer import Tokenizer

PROMPT_SUFFIX = ", "
"""Text that the release appends to the phrase."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionLogits:
    """What the passes give for one phrase: head means before the softmax."""

    taps: Float
    """[p, l, q, t], guided."""
    coarse: Float | None = None
    """[p, 1, q / 4, t], guided, of the coarsest level; None where the graphs have no such output."""
    itself: Float | None = None
    """[p, l, q, q], of the tapped layers' self-attention under the phrase; None as above."""


class MapReader:
    """Makes heatmaps of logits.

    Args:
        options: of the segmenter.
        spec: Stable Diffusion's sizes.
        tokenizer: of the bundle.

    Raises:
        InputError: the options are out of range, or read what the graphs do not output.
    """

    def __init__(self, options: Options, spec: DiffusionSpec, tokenizer: Tokenizer) -> None:
        _check(options.attention, spec)
        self._options, self._attention = options, options.attention
        self._spec, self._tokenizer = spec, tokenizer

    def heatmap(self, logits: AttentionLogits, size_yx: tuple[int, int], phrase: Phrase) -> Float:
        """Return the heatmap of the phrase's logits (METHOD §4.6), under the ramp where the options say so.

        Args:
            logits: of a branch whose options differ at most in how logits are read.
            size_yx: the image's size in px.
            phrase: that of the logits.

        Returns:
            [y, x], 0..1.
        """
        attention, released = self._attention, self._attention.uint8_lanczos
        mean = mean_map(self.maps(logits, phrase), self._weights(len(logits.taps)), exact=released)
        if attention.propagate and logits.itself is not None:
            mean = propagate(mean, affinity(logits.itself), attention.propagate)
        heatmap = heatmap_on_image(mean, size_yx, uint8_lanczos=released)
        if self._options.fusion.ramp_on_heat:
            heatmap *= heat_ramp(phrase, size_yx)
        return heatmap

    def maps(self, logits: AttentionLogits, phrase: Phrase) -> Float:
        """Return the map of every pass and tapped layer, passes first, then those of the coarsest level.

        Args:
            logits: as for `heatmap`.
            phrase: that of the logits.

        Returns:
            [m, g, g], 0..1 (METHOD §4.5, §10.8, §10.9, §10.11).
        """
        side = self._spec.tap_size
        maps = self._read(logits.taps, phrase, side)
        if not self._attention.coarse or logits.coarse is None:
            return maps
        coarse = upsample_bilinear(self._read(logits.coarse, phrase, self._spec.coarse_size), (side, side))
        return np.concatenate([maps, scale_maps(coarse)])

    def _read(self, logits: Float, phrase: Phrase, side: int) -> Float:
        """Return the maps [m, side, side] of logits [p, l, q, t]."""
        attention = self._attention
        rows = logits.reshape(-1, *logits.shape[2:])  # [m, q, t]
        own, others = self._tokenizer.content_indices(phrase) if attention.rescale else ((), ())
        if own and others:
            maps = share_maps(rows, own, others, side)
        else:
            maps = normalize_maps(rows, self._tokenizer.focus_indices(phrase, attention.focus), side)
        if not attention.end_token:
            return maps
        _, end = self._tokenizer.clip_ids(phrase.text + PROMPT_SUFFIX)
        return scale_maps(maps + np.float32(attention.end_token) * normalize_maps(rows, (end,), side))

    def _weights(self, passes: int) -> tuple[float, ...] | None:
        """Return the weights of `maps` in the mean; None: all equal."""
        attention = self._attention
        if not attention.coarse:
            return attention.layer_weights * passes or None
        layers = attention.layer_weights or (1.0,) * len(self._spec.tapped_layers)
        return layers * passes + (attention.coarse,) * passes


def _check(options: AttentionOptions, spec: DiffusionSpec) -> None:
    for name, value in (("end token's weight", options.end_token), ("coarse weight", options.coarse)):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"got {value} as the {name}, expected 0 or more")
    if options.propagate < 0:
        raise InputError(f"got {options.propagate} steps of propagation, expected 0 or more")
    weights, layers = options.layer_weights, len(spec.tapped_layers)
    usable = all(math.isfinite(each) and each >= 0 for each in weights) and sum(weights) > 0
    if weights and not (usable and len(weights) == layers):
        raise InputError(
            f"got layer weights {weights}, expected {layers} numbers of 0 or more, one for each tapped"
            " layer, not all 0"
        )
    for option, value, name in (
        ("coarse", options.coarse, "coarse"),
        ("propagate", options.propagate, "self"),
    ):
        if value and name not in spec.maps:
            raise InputError(
                f"the options have {option} = {value}, which reads an output that these graphs do not have; "
                f"export them with: refdiff export MODEL --maps {name}"
            )
