"""Metrics of many sentences, with intervals, and where accuracy is lost (METHOD §11).

In: `SentenceRecord`s. Out: a `Summary` of all, and of those with a cue or of a size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.accuracy.metrics import PRECISION_LEVELS, Interval, bootstrap_interval
from refdiff.evaluation.records import SentenceRecord

SIZES = ((0.02, "small (< 2 %)"), (0.1, "medium (2-10 %)"), (1.01, "large (> 10 %)"))
"""Largest share of the image's pixels of each class of objects."""

_RIGHT_OBJECT = 0.5
"""IoU from which a wrong answer lies on the right object: what is lost then are edges."""

Sums = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Metrics of a number of sentences; shares and IoUs are 0..1."""

    count: int
    """Sentences that refer to something; all metrics but the next four are about them."""
    absent: int
    """Sentences that refer to nothing in the image (gRefCOCO)."""
    no_target_accuracy: float | None
    """N-acc: share of the sentences without a target that got an empty mask; None without such sentences."""
    target_accuracy: float | None
    """T-acc: share of the sentences with a target that got a mask; None without sentences of both kinds."""
    giou: float
    """Mean IoU of all sentences; an empty answer where there is no target counts 1."""
    images: int
    miou: float
    miou_interval: Interval
    """95 %, by bootstrap over images."""
    oiou: float
    """Also called cIoU: sum of intersections over sum of unions, of all sentences."""
    oiou_interval: Interval
    precision_at: dict[float, float]
    """X -> share of sentences whose IoU is above X, strictly."""
    oracle_miou: float
    """Mean IoU of the best candidates."""
    lost_to_proposals: float
    """1 - oracle mIoU. With the next two and mIoU it adds up to 1."""
    lost_to_ranking: float
    """Mean of best IoU - IoU over sentences whose answer lies on another object (IoU below 0.5)."""
    lost_to_edges: float
    """The same over the other sentences: the right object in a less exact mask."""
    unmatched: int
    """Sentences that got an empty mask."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "count": self.count,
            "images": self.images,
            "miou": self.miou,
            "miou_95": list(self.miou_interval),
            "oiou": self.oiou,
            "oiou_95": list(self.oiou_interval),
            "giou": self.giou,
            **{f"pr@{level}": share for level, share in self.precision_at.items()},
            "oracle_miou": self.oracle_miou,
            "lost_to_proposals": self.lost_to_proposals,
            "lost_to_ranking": self.lost_to_ranking,
            "lost_to_edges": self.lost_to_edges,
            "unmatched": self.unmatched,
            "absent": self.absent,
            "n_acc": self.no_target_accuracy,
            "t_acc": self.target_accuracy,
        }


def summarize(records: Sequence[SentenceRecord]) -> Summary:
    """Return the metrics of sentences; every number is 0 if there are none."""
    targets = [each for each in records if each.has_target]
    absent = [each for each in records if not each.has_target]
    ious = np.array([each.iou for each in targets], dtype=np.float64)
    oracle = np.array([each.oracle_iou for each in targets], dtype=np.float64)
    gap, on_object = oracle - ious, ious >= _RIGHT_OBJECT
    intersections, unions = (
        sum(getattr(each, name) for each in records) for name in ("intersection_px", "union_px")
    )
    by_image = _sums_by_image(targets, records)
    return Summary(
        count=len(targets),
        absent=len(absent),
        no_target_accuracy=_mean([not each.matched for each in absent]) if absent else None,
        target_accuracy=_mean([each.matched for each in targets]) if absent and targets else None,
        giou=_mean([each.iou for each in records]),
        images=len(by_image),
        miou=_mean(ious),
        miou_interval=bootstrap_interval(by_image, lambda sums: _ratio(sums[:, 0], sums[:, 1])),
        oiou=intersections / unions if unions else 0.0,
        oiou_interval=bootstrap_interval(by_image, lambda sums: _ratio(sums[:, 2], sums[:, 3])),
        precision_at={level: _mean(ious > level) for level in PRECISION_LEVELS},
        oracle_miou=_mean(oracle),
        lost_to_proposals=_mean(1 - oracle),
        lost_to_ranking=_mean(np.where(on_object, 0, gap)),
        lost_to_edges=_mean(np.where(on_object, gap, 0)),
        unmatched=sum(not each.matched for each in records),
    )


def summarize_other(records: Sequence[SentenceRecord]) -> Summary | None:
    """Return the metrics of what the other selector of mode `gen` chooses (METHOD §8); else None."""
    chosen = [
        replace(each, intersection_px=each.other_selector[0], union_px=each.other_selector[1])
        for each in records
        if each.other_selector is not None
    ]
    return summarize(chosen) if chosen else None


def group_by_cue(records: Sequence[SentenceRecord]) -> dict[str, list[SentenceRecord]]:
    """Return the sentences with each cue, and those of each size of object; a sentence may be in several."""
    groups: dict[str, list[SentenceRecord]] = defaultdict(list)
    for record in records:
        for cue in record.cues:
            groups[cue].append(record)
    for _, name in SIZES:
        members = [each for each in records if each.has_target and _size(each) == name]
        if members:
            groups[name] = members
    order = [name for _, name in SIZES]
    return {name: groups[name] for name in sorted(groups, key=lambda name: (name in order, name))}


def _size(record: SentenceRecord) -> str:
    share = record.truth_px / record.image_px
    return next(name for most, name in SIZES if share < most)


def _sums_by_image(targets: Sequence[SentenceRecord], records: Sequence[SentenceRecord]) -> Sums:
    """Return the sums of IoU, sentences, intersection and union of each image: [g, 4]."""
    rows: dict[str, Sums] = defaultdict(lambda: np.zeros(4))
    for each in targets:
        rows[each.picture][:2] += each.iou, 1
    for each in records:
        rows[each.picture][2:] += each.intersection_px, each.union_px
    return np.array(list(rows.values())).reshape(-1, 4)


def _ratio(numerators: Sums, denominators: Sums) -> Sums:
    return numerators / np.maximum(denominators, 1)


def _mean(values: Any) -> float:
    return float(np.mean(np.asarray(values, dtype=np.float64))) if len(values) else 0.0
