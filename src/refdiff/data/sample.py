"""A sample is an image and a phrase; a dataset is a number of samples in a fixed order.

Makers: rendered scenes in `synthetic`; image files, with phrases or a CSV file, in `folder`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.session import Bool
from refdiff.errors import InputError
from refdiff.runtime.image import read_image
from refdiff.runtime.phrase import parse_phrase
from refdiff.runtime.tokenizer import Tokenizer

ImageSource: TypeAlias = Path | bytes | NDArray[np.uint8]
"""An image file, an image file's bytes, or pixels [y, x, 3] uint8 RGB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """An image and a phrase that refers to something in it."""

    id: str
    """Unique in its dataset."""
    image: ImageSource
    phrase: str
    truth: Bool | None = None
    """[y, x], the true mask; None where it is unknown."""
    cues: frozenset[str] = frozenset()
    """Cues that the phrase uses (kind, colour, size, place, relation); empty where that is unknown."""
    seed: int | None = None
    """Seed of a rendered scene; None for other images."""

    def read(self) -> NDArray[np.uint8]:
        """Read and decode the image.

        Returns:
            [y, x, 3] uint8 RGB.

        Raises:
            InputError: the image is missing, damaged or not a still image.
        """
        return read_image(self.image, name=self.id)


def true_mask(sample: Sample) -> Bool:
    """Return the true mask [y, x] of a sample that has to have one.

    Raises:
        InputError: it has none.
    """
    if sample.truth is None:
        raise InputError(f"{sample.id} has no true mask; use a data set with masks")
    return sample.truth


class Dataset(Protocol):
    """Samples in a fixed order. Iterating again yields the same samples."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples in order; images may be read or rendered as they are reached."""
        ...

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON-ready; two datasets of one fingerprint hold the same images and phrases."""
        ...


@dataclass(frozen=True, eq=False)
class SampleList:
    """A dataset of given samples."""

    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples in order."""
        return iter(self.samples)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Hash of all images, their file names and the phrases; every image file is read for it."""
        digest = hashlib.sha256()
        for sample, image_hash in zip(self.samples, image_hashes(self.samples), strict=True):
            name = sample.image.name if isinstance(sample.image, Path) else ""
            digest.update(f"{image_hash} {name}\n{sample.phrase}\n".encode())
        return {"kind": "pictures", "count": len(self.samples), "sha256": digest.hexdigest()}


def image_hashes(samples: Iterable[Sample]) -> tuple[str, ...]:
    """Return the SHA-256 of each sample's image; a file that several samples share is read once."""
    files: dict[Path, str] = {}
    hashes: list[str] = []
    for sample in samples:
        image = sample.image
        if not isinstance(image, Path):
            data = image if isinstance(image, bytes) else f"{image.shape}".encode() + image.tobytes()
            hashes.append(hashlib.sha256(data).hexdigest())
            continue
        if image not in files:
            files[image] = hash_file(image)
        hashes.append(files[image])
    return tuple(hashes)


def check_phrases(samples: Iterable[Sample], tokenizer: Tokenizer) -> None:
    """Refuse a phrase that the pipeline would refuse, before any graph runs.

    Raises:
        InputError: a phrase cannot be parsed or is too long; the message names the sample.
    """
    for sample in samples:
        _check_phrase(sample, tokenizer)


def _check_phrase(sample: Sample, tokenizer: Tokenizer) -> None:
    try:
        tokenizer.check_length(parse_phrase(sample.phrase, word_boundaries=True).text)
    except InputError as error:
        raise InputError(f"{sample.id}: {error}") from error
