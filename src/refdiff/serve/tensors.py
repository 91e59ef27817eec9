"""The question and its answers as named tensors: the contract of `/v2` and of the Triton model.

Axes: n = phrases, y/x = image rows/columns.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.session import ImageArray
from refdiff.errors import InputError
from refdiff.runtime.image_file import LIMIT_PX
from refdiff.runtime.segmentation import Segmentation
from refdiff.serve.request import MOST_PROMPTS, Prompt, decode_base64

_BASE64 = f"{string.ascii_letters}{string.digits}+/".encode()

MODEL_NAME = "refdiff"
MODEL_VERSION = "1"

Tensors = Mapping[str, NDArray[Any]]

_NUMPY: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "FP32": np.dtype(np.float32),
    "BYTES": np.dtype(np.object_),
}
"""Datatype of the protocol -> numpy's; the elements of BYTES are Python's bytes."""

NO_CONFIDENCE = -1.0
"""Confidence of an answer that has none: below every limit that a client compares with."""

NO_SCORE = float(np.finfo(np.float32).min)
"""Score of an answer without a mask: the lowest number that JSON and FP32 both have."""

MOST_MASK_BYTES = 1 << 28
"""Bytes of the masks of one answer: 64 masks of 4 million pixels."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output."""

    name: str
    datatype: str
    """A datatype of the Open Inference Protocol."""
    shape: tuple[int, ...]
    """-1 varies."""
    optional: bool = False
    most: int = 0
    """Most elements of an input."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Numpy's dtype."""
        return _NUMPY[self.datatype]

    def metadata(self) -> dict[str, Any]:
        """Return the tensor as the protocol's metadata describe it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def config(self) -> dict[str, Any]:
        """Return the tensor as Triton's model configuration describes it."""
        kind = "TYPE_STRING" if self.datatype == "BYTES" else f"TYPE_{self.datatype}"
        optional = {"optional": True} if self.optional else {}
        return {"name": self.name, "data_type": kind, "dims": list(self.shape), **optional}

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse a shape of an input.

        Raises:
            InputError: another rank, a size below 1 or other than the contract's, or too many elements.
        """
        fits = len(shape) == len(self.shape) and all(
            size >= 1 and own in (-1, size) for own, size in zip(self.shape, shape, strict=True)
        )
        if not fits:
            raise InputError(
                f"got {self.name} of shape {_short(list(shape))}, expected {list(self.shape)}, -1 any size "
                "of 1 or more"
            )
        count = 1
        for size in shape:
            count *= size
        if count > self.most:
            raise InputError(
                f"got {self.name} of shape {_short(list(shape))}, expected at most {self.most} elements"
            )


INPUTS: tuple[Tensor, ...] = (
    Tensor(name="image", datatype="BYTES", shape=(1,), optional=True, most=1),
    Tensor(name="pixels", datatype="UINT8", shape=(-1, -1, 3), optional=True, most=3 * LIMIT_PX),
    Tensor(name="phrases", datatype="BYTES", shape=(-1,), most=MOST_PROMPTS),
    Tensor(name="min_confidence", datatype="FP32", shape=(1,), optional=True, most=1),
)
"""`image`: the bytes of an image file, or these in base64. `pixels`: [y, x, 3] RGB, in its place. `phrases`:
UTF-8. `min_confidence`: 0..1; answers of a lower confidence, or of none, have no mask."""

OUTPUTS: tuple[Tensor, ...] = (
    Tensor(name="masks", datatype="BOOL", shape=(-1, -1, -1)),
    Tensor(name="matched", datatype="BOOL", shape=(-1,)),
    Tensor(name="confidence", datatype="FP32", shape=(-1,)),
    Tensor(name="score", datatype="FP32", shape=(-1,)),
    Tensor(name="bbox", datatype="INT32", shape=(-1, 4)),
    Tensor(name="reason", datatype="BYTES", shape=(-1,)),
    Tensor(name="cautions", datatype="BYTES", shape=(-1,)),
)
"""One row for each phrase. `masks`: [n, y, x], all false where `matched` is false. `confidence`: 0..1, or
`NO_CONFIDENCE`. `score`: that of the mask, or `NO_SCORE`. `bbox`: x, y, width, height in px, zeros without a
mask. `reason`: why there is no mask, else empty. `cautions`: why the mask may be wrong, one on each line."""

INPUT_OF = {each.name: each for each in INPUTS}
OUTPUT_OF = {each.name: each for each in OUTPUTS}


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the inputs ask."""

    image: bytes | ImageArray
    """The bytes of an image file, or its pixels [y, x, 3] RGB."""
    prompts: tuple[Prompt, ...]


def read_question(tensors: Tensors) -> Question:
    """Read the inputs of a request; nothing is decoded yet.

    Args:
        tensors: by name, those that were sent.

    Raises:
        InputError: an input is unknown, missing, of another type or shape, or has a value out of range.
    """
    for name, array in tensors.items():
        _check_input(name, array)
    image, pixels = tensors.get("image"), tensors.get("pixels")
    if (image is None) == (pixels is None):
        got = "neither" if image is None else "both"
        raise InputError(f"expected either the input image or the input pixels, got {got}")
    if "phrases" not in tensors:
        raise InputError("the input phrases is missing; send what to find, such as 'the red mug'")
    least = None
    if "min_confidence" in tensors:
        least = float(tensors["min_confidence"][0])
        if not 0 <= least <= 1:  # NaN included
            raise InputError(f"got min_confidence {least:g}, expected a number from 0 to 1")
    prompts = tuple(Prompt(text=_text_of(each), min_confidence=least) for each in tensors["phrases"])
    if pixels is not None:
        return Question(image=pixels, prompts=prompts)
    assert image is not None  # noqa: S101 - one of the two is there
    return Question(image=_file_of(_bytes_of(image[0])), prompts=prompts)


def _check_input(name: str, array: NDArray[Any]) -> None:
    if name not in INPUT_OF:
        raise InputError(f"got the input {_short(name)}, expected only {', '.join(INPUT_OF)}")
    tensor = INPUT_OF[name]
    if array.dtype != tensor.dtype:
        raise InputError(f"got {name} of numpy's type {array.dtype}, expected {tensor.datatype}")
    tensor.check_shape(array.shape)


def _text_of(element: object) -> str:
    try:
        return _bytes_of(element).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"got a phrase that is not UTF-8 ({error.reason}); encode it so") from error


def _bytes_of(element: object) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()


def _file_of(data: bytes) -> bytes:
    """Return the bytes of an image file; it may be in base64, whose characters alone make no image file."""
    letters = data.rstrip(b"=")
    if not letters or len(data) - len(letters) > 2 or letters.translate(None, _BASE64):
        return data
    try:
        return decode_base64(data)
    except ValueError as error:
        raise InputError(f"got an image that is cut-off base64 ({error}); encode the file's bytes") from error


Row = Mapping[str, Any]


def row_of(answer: Segmentation, outputs: Sequence[str], count: int) -> Row:
    """Return what the outputs of these names say of one answer; nothing else of it is kept.

    Args:
        answer: to one phrase.
        outputs: names of `OUTPUTS`.
        count: phrases of the request.

    Raises:
        InputError: the masks of all of them are too large for one response.
    """
    if "masks" in outputs and answer.mask.size * count > MOST_MASK_BYTES:
        raise InputError(
            f"{count} masks of {answer.mask.shape[1]} x {answer.mask.shape[0]} px have more than "
            f"{MOST_MASK_BYTES >> 20} MiB; send fewer phrases or a smaller image, or leave out the masks"
        )
    x0, y0, x1, y1 = answer.box or (0, 0, 0, 0)
    values = {
        "masks": answer.mask,
        "matched": answer.matched,
        "confidence": NO_CONFIDENCE if answer.confidence is None else answer.confidence,
        "score": answer.score if answer.matched and np.isfinite(answer.score) else NO_SCORE,
        "bbox": (x0, y0, x1 - x0, y1 - y0),
        "reason": (answer.reason or "").encode(),
        "cautions": "\n".join(answer.cautions).encode(),
    }
    return {name: values[name] for name in outputs}


def stack_rows(rows: Sequence[Row], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the outputs of these names, one row for each answer."""
    return {name: np.array([row[name] for row in rows], OUTPUT_OF[name].dtype) for name in outputs}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
