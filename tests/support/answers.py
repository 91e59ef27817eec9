"""Answers that no engine computed: one mask, which is the only candidate."""

import numpy as np

from refdiff.batch.prediction import Prediction
from refdiff.contracts.options import VARIANTS
from refdiff.contracts.results import Candidates, Scores
from refdiff.runtime.segmentation import Segmentation


def answer(phrase, mask, *, score=0.5, **changes):
    """Return an answer with a mask [y, x]; an empty one does not match.

    Args:
        phrase: its last word is the head word.
        mask: the candidate.
        score: every part of it.
        changes: further fields.
    """
    value, (rows, columns) = np.array([score], np.float32), np.nonzero(mask)
    box = [columns.min(), rows.min(), columns.max(), rows.max()] if mask.any() else [0, 0, 0, 0]
    fields = {
        "phrase": phrase,
        "root": (phrase.split() or [""])[-1],
        "mask": mask,
        "index": 0 if mask.any() else None,
        "score": score,
        "scores": Scores(hard=value, soft=value, generative=value, place=value, total=value),
        "heat": None,
        "candidates": Candidates(
            masks=mask[None],
            predicted_iou=value,
            areas_px=np.array([mask.sum()]),
            boxes_xyxy_px=np.array([box]),
            kept=np.ones(1, bool),
        ),
    }
    return Segmentation(**fields | changes)


def prediction(result, image):
    """Return an answer about an image [y, x, 3] as a folder run takes it."""
    return Prediction(
        image=image,
        result=result,
        options=VARIANTS["edge"],
        model="mini",
        backend="a test",
        backend_reason="",
        encode_ms=1.0,
        segment_ms=1.0,
    )
