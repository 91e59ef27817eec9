"""Vectors of a prompt encoder for fakes of SAM: the places can be read back from the tokens."""

import math

import numpy as np

from refdiff.contracts.prompt_vectors import MaskLayer, PromptVectors
from refdiff.contracts.spec import SamSpec

_TURNS = 1 / 8
"""Of a circle, for half of the image: sines of at most an eighth of a turn differ."""


def readable_vectors(sam: SamSpec) -> PromptVectors:
    c = sam.embed_channels
    frequencies = np.zeros((2, c // 2), np.float32)
    frequencies[0, 0] = frequencies[1, 1 % (c // 2)] = _TURNS
    layers = ((4, 1), (4, 1), (1, c))
    return PromptVectors(
        side=sam.image_size,
        frequencies=frequencies,
        labels=np.zeros((4, c), np.float32),
        not_a_point=np.zeros(c, np.float32),
        no_mask=np.zeros(c, np.float32),
        mask_layers=tuple(
            MaskLayer(
                product=np.ones(shape, np.float32),
                bias=np.zeros(shape[1], np.float32),
                scale=np.ones(shape[1], np.float32) if shape[1] != c else None,
                shift=np.zeros(shape[1], np.float32) if shape[1] != c else None,
            )
            for shape in layers
        ),
    )


def first_places(tokens: np.ndarray, sam: SamSpec) -> np.ndarray:
    """The places [n, 2] of the first token of each prompt, in px of SAM's image."""
    shares = np.arcsin(tokens[:, 0, :2]) / (2 * math.pi * _TURNS)
    return (shares + 1) / 2 * sam.image_size - 0.5
