"""Decode COCO run lengths, to compare what `refdiff.runtime.masks` encodes."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from refdiff.contracts.session import Bool


def from_coco_rle(rle: Mapping[str, Any]) -> Bool:
    """Return the mask [y, x] of run lengths, uncompressed (a list) or compressed (text or ASCII bytes)."""
    height, width = rle["size"]
    counts = rle["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    runs = _decoded(counts) if isinstance(counts, str) else list(counts)
    assert sum(runs) == height * width
    values = np.arange(len(runs)) % 2 == 1
    return np.array(np.repeat(values, runs).reshape(width, height).T, dtype=np.bool_, order="C")


def _decoded(text: str) -> list[int]:
    runs: list[int] = []
    for delta in _numbers(text):
        runs.append(delta + runs[-2] if len(runs) > 2 else delta)
    return runs


def _numbers(text: str) -> Iterable[int]:
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            yield value - (1 << shift) if group & 0x10 else value
            value = shift = 0
