"""An auto-annotation function for CVAT: phrases find the objects of its labels, and every mask is a shape.

`cvat-cli` imports this module and calls `create` (`cvat_sdk.auto_annotation.DetectionFunction`):

    cvat-cli task auto-annotate 42 --function-module refdiff.batch.cvat -p phrases=str:phrases.csv
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refdiff.batch.outline import outline
from refdiff.contracts.options import BackendOptions, RunOptions
from refdiff.contracts.plain_file import read_plain
from refdiff.errors import InputError, MissingDependencyError
from refdiff.loading import load
from refdiff.runtime.confidence import withhold
from refdiff.runtime.phrase import normalize_text
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.segmentation import Segmentation

if TYPE_CHECKING:
    from cvat_sdk.auto_annotation import DetectionFunctionContext, DetectionFunctionSpec
    from cvat_sdk.models import LabeledShapeRequest
    from PIL.Image import Image

_HEADER = ["label", "phrase"]


@contextmanager
def _require_cvat() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("cvat_sdk"):
            raise
        raise MissingDependencyError(
            "annotating for CVAT needs cvat_sdk, which is not installed; pip install cvat-sdk cvat-cli"
        ) from error


def create(
    phrases: str,
    bundle: str = "mini",
    variant: str = "edge",
    mode: str = "full",
    backend: str = "auto",
    threads: int | None = None,
    min_confidence: float | None = None,
) -> PhraseFunction:
    """Return the function; `cvat-cli` passes what follows `-p`.

    Args:
        phrases: a CSV file with the header `label,phrase`, or a text file with a phrase on each line, which
            is its own label. A label may have several phrases.
        bundle: its folder, or "mini" for the built-in one.
        variant: see `RunOptions`.
        mode: see `RunOptions`.
        backend: where the graphs run.
        threads: of the processor.
        min_confidence: 0..1; below it there is no shape. CVAT's own threshold counts, too.

    Raises:
        InputError: the file cannot be read, or a phrase or an option cannot be used.
        MissingDependencyError: cvat_sdk or a package of the back-end is missing.
        RefdiffError: the bundle cannot be loaded.
    """
    with _require_cvat():
        import cvat_sdk.auto_annotation  # noqa: F401
    rows = read_labels(Path(phrases))
    options = RunOptions(variant=variant, mode=mode, min_confidence=min_confidence)
    segmenter = load(bundle, options=options, backend=BackendOptions(name=backend, threads=threads))
    segmenter.check_phrases([phrase for _, phrase in rows])
    return PhraseFunction(segmenter, rows)


def read_labels(path: Path) -> list[tuple[str, str]]:
    """Return label and phrase of each row of a file, each pair once.

    Raises:
        InputError: the file cannot be read, or a row has no label or no phrase.
    """
    try:
        text = read_plain(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected UTF-8 text with phrases") from error
    rows = [row for row in csv.reader(io.StringIO(text)) if any(map(str.strip, row))]
    if rows and [each.strip() for each in rows[0]] == _HEADER:
        wrong = next((row for row in rows[1:] if len(row) != 2 or not all(map(str.strip, row))), None)
        if wrong is not None:
            raise InputError(f"{path} has the row {','.join(wrong)!r}, expected a label and a phrase")
        pairs = [(label.strip(), normalize_text(phrase)) for label, phrase in rows[1:]]
    else:
        lines = [normalize_text(line) for line in text.splitlines() if line.strip()]
        pairs = [(line, line) for line in lines]
    if not pairs:
        raise InputError(f"{path} has no phrase; write one on each line, or a CSV file with label,phrase")
    return list(dict.fromkeys(pairs))


class PhraseFunction:
    """Finds what phrases name in the images of a task.

    Args:
        segmenter: of a bundle.
        rows: label and phrase; the labels have to be those of the task in CVAT.
    """

    def __init__(self, segmenter: Segmenter, rows: Sequence[tuple[str, str]]) -> None:
        self._segmenter, self._rows = segmenter, rows
        self._ids = {label: number for number, label in enumerate(dict.fromkeys(label for label, _ in rows))}

    @property
    def spec(self) -> DetectionFunctionSpec:
        """The labels."""
        with _require_cvat():
            from cvat_sdk import auto_annotation as cvat
        labels = [cvat.label_spec(label, number) for label, number in self._ids.items()]
        return cvat.DetectionFunctionSpec(labels=labels)

    def detect(self, context: DetectionFunctionContext, image: Image) -> list[LabeledShapeRequest]:
        """Return a shape for each phrase that has a mask: a mask, or a polygon where CVAT asks for it.

        Phrases of one label that find the same mask give one shape.

        Args:
            context: CVAT's threshold and the kind of shapes.
            image: of the task.
        """
        answers = self._segmenter.segment_each(image, [phrase for _, phrase in self._rows])
        polygons = context.conv_mask_to_poly
        found: dict[tuple[int, tuple[float, ...]], LabeledShapeRequest] = {}
        for (label, _), each in zip(self._rows, answers, strict=True):
            answer = withhold(each, context.conf_threshold)
            if not answer.matched or not answer.area:
                continue
            number = self._ids[label]
            shape = _polygon(number, answer) if polygons else _mask(number, answer)
            found.setdefault((number, tuple(shape.points)), shape)
        return list(found.values())

    def close(self) -> None:
        """Free the engines."""
        self._segmenter.close()


def _mask(label: int, answer: Segmentation) -> LabeledShapeRequest:
    """Return a mask: run lengths of its box, and the box with inclusive corners."""
    from cvat_sdk.auto_annotation import mask
    from cvat_sdk.masks import encode_mask

    rows, columns = (np.flatnonzero(np.any(answer.mask, axis=axis)) for axis in (1, 0))
    box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    return mask(label, encode_mask(answer.mask, box))


def _polygon(label: int, answer: Segmentation) -> LabeledShapeRequest:
    from cvat_sdk.auto_annotation import polygon

    return polygon(label, outline(answer.mask).ravel().tolist())
