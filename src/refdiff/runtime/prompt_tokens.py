"""SAM's prompt encoder in numpy: tokens of points and boxes, and the embedding of a mask.

It equals `segment_anything.modeling.PromptEncoder`. A prompt is a list of places with a label each; places
are px of SAM's resized image, and half a pixel is added to them, as in SAM.

Axes: n = prompts, q = tokens of a prompt, c = embedding channels, s = embedding side, l = 4 s.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.prompt_vectors import NORM_EPS, MaskLayer, PromptVectors
from refdiff.contracts.session import Float

NOT_A_POINT, NEGATIVE, POSITIVE, FIRST_CORNER, LAST_CORNER = -1, 0, 1, 2, 3
"""Labels of places, as in SAM. A prompt without a box ends with one place that is not a point."""

_erf = np.frompyfunc(math.erf, 1, 1)


def point_tokens(vectors: PromptVectors, points: Float, negatives: Float | None = None) -> Float:
    """Return the tokens [n, k + 2, c] of prompts of one positive point each.

    Args:
        vectors: of the bundle.
        points: [n, 2] of (x, y), px of SAM's resized image.
        negatives: [k, 2], negative points of every prompt; None: there are none.
    """
    others = np.zeros((0, 2), np.float32) if negatives is None else negatives
    shared = np.concatenate([others, np.zeros((1, 2), np.float32)])  # of all prompts, the padding last
    places = np.concatenate([points[:, None], np.tile(shared, (len(points), 1, 1))], axis=1)
    labels = np.array([POSITIVE, *[NEGATIVE] * len(others), NOT_A_POINT])
    return place_tokens(vectors, places, np.tile(labels, (len(points), 1)))


def place_tokens(vectors: PromptVectors, places: Float, labels: NDArray[np.int64]) -> Float:
    """Return the tokens [n, q, c] of labeled places.

    Args:
        vectors: of the bundle.
        places: [n, q, 2] of (x, y), px of SAM's resized image; where the label is `NOT_A_POINT`, anything.
        labels: [n, q], -1..3.
    """
    tokens = np.empty((*labels.shape, vectors.labels.shape[1]), dtype=np.float32)
    real = labels != NOT_A_POINT
    tokens[~real] = vectors.not_a_point
    tokens[real] = _fourier_features(vectors, places[real]) + vectors.labels[labels[real]]
    return tokens


def _fourier_features(vectors: PromptVectors, places: Float) -> Float:
    """Return sines, then cosines, of places [k, 2]: [k, c].

    In single precision and in SAM's order: the angles reach 30, where another order moves them by 5e-6.
    """
    shares = (places.astype(np.float32) + np.float32(0.5)) / np.float32(vectors.side)
    angles = np.float32(2 * math.pi) * ((2 * shares - 1) @ vectors.frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def mask_embedding(vectors: PromptVectors, logits: Float) -> Float:
    """Return the embedding [1, c, s, s] of a mask's low-resolution logits [l, l]."""
    pixels = logits[..., None]  # [rows, columns, channels]
    for layer in vectors.mask_layers:
        if len(layer.product) > pixels.shape[2]:
            pixels = _join_pixels(pixels)
        pixels = _apply(layer, pixels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32)


def _join_pixels(pixels: Float) -> Float:
    """Put the channels of 2 x 2 pixels side by side: [2 y, 2 x, c] -> [y, x, 4 c]."""
    height, width, channels = pixels.shape
    split = pixels.reshape(height // 2, 2, width // 2, 2, channels)
    return split.transpose(0, 2, 1, 3, 4).reshape(height // 2, width // 2, 4 * channels)


def _apply(layer: MaskLayer, pixels: Float) -> Float:
    """Return the product, and after it the norm over channels and GELU where the layer has them."""
    found = pixels @ layer.product + layer.bias
    if layer.scale is None or layer.shift is None:
        return found
    centered = found - found.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centered * centered).mean(axis=-1, keepdims=True) + np.float32(NORM_EPS))
    normed = layer.scale * (centered / spread) + layer.shift
    distribution = 0.5 * (1.0 + _erf(normed.astype(np.float64) / math.sqrt(2.0)).astype(np.float64))
    return np.asarray(normed * distribution, dtype=np.float32)
