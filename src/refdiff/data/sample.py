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


class StoredImage(Protocol):
    """An image inside a larger file, such as a parquet table, read when it is needed."""

    def read_bytes(self) -> bytes:
        """Return the bytes of the image file.

        Raises:
            InputError: it cannot be read.
        """
        ...


ImageSource: TypeAlias = Path | bytes | NDArray[np.uint8] | StoredImage
"""An image file, an image file's bytes, pixels [y, x, 3] uint8 RGB, or an image inside a larger file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """The true mask of a sample."""

    mask: Bool
    """[y, x]; all False if the phrase refers to nothing in the image."""
    ignored: Bool | None = None
    """[y, x], pixels that count neither as right nor as wrong; None: no such pixels."""


class TruthSource(Protocol):
    """A true mask that is decoded when it is needed: data sets hold more masks than memory does."""

    def read(self) -> Truth:
        """Decode the mask.

        Raises:
            InputError: it cannot be decoded.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """An image and a phrase that refers to something in it."""

    id: str
    """Unique in its dataset."""
    image: ImageSource
    phrase: str
    truth: Bool | TruthSource | None = None
    """[y, x], the true mask, or its source; None where it is unknown."""
    cues: frozenset[str] = frozenset()
    """Cues that the phrase uses (kind, colour, size, place, relation); empty where that is unknown."""
    seed: int | None = None
    """Seed of a rendered scene; None for other images."""
    subset: str = ""
    """Data set, split author and split, such as "RefCOCO (unc, val)"; empty where there are none."""
    picture: str = ""
    """Name that samples of one image share, also across data sets; empty: `id`."""

    def read(self) -> NDArray[np.uint8]:
        """Read and decode the image.

        Returns:
            [y, x, 3] uint8 RGB.

        Raises:
            InputError: the image is missing, damaged or not a still image.
        """
        return read_image(self.fetch(), name=self.id)

    def fetch(self) -> Path | bytes | NDArray[np.uint8]:
        """Return the image as a segmenter takes it; one inside a larger file is read.

        Raises:
            InputError: the larger file cannot be read.
        """
        image = self.image
        return image if isinstance(image, (Path, bytes, np.ndarray)) else image.read_bytes()


def read_truth(sample: Sample) -> Truth:
    """Return the true mask of a sample that has to have one.

    Raises:
        InputError: it has none, or it cannot be decoded.
    """
    if sample.truth is None:
        raise InputError(f"{sample.id} has no true mask; use a data set with masks")
    return Truth(mask=sample.truth) if isinstance(sample.truth, np.ndarray) else sample.truth.read()


def true_mask(sample: Sample) -> Bool:
    """Return the true mask [y, x] of a sample that has to have one.

    Raises:
        InputError: as for `read_truth`.
    """
    return read_truth(sample).mask


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
            hashes.append(hashlib.sha256(_content(image)).hexdigest())
            continue
        if image not in files:
            files[image] = hash_file(image)
        hashes.append(files[image])
    return tuple(hashes)


def _content(image: bytes | NDArray[np.uint8] | StoredImage) -> bytes:
    if isinstance(image, bytes):
        return image
    return (
        f"{image.shape}".encode() + image.tobytes() if isinstance(image, np.ndarray) else image.read_bytes()
    )


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
