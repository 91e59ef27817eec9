"""The answers of an evaluation in the files that other tools read: COCO results, and REFER's layout.

In: samples and their records. Out: JSON-ready documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from refdiff.contracts.session import Bool
from refdiff.data.truth import decode_segmentation
from refdiff.evaluation.records import SentenceRecord


def coco_results(records: Iterable[SentenceRecord]) -> list[dict[str, Any]]:
    """Return COCO's list of results; each sentence counts as an image, as pycocotools scores one class.

    Each has `image_id` (the number of the sentence, from 1), `category_id` 1, `segmentation`, `score`, and
    the sentence's `id`, `phrase` and `file_name`. Sentences without a mask are left out.
    """
    return [
        {
            "image_id": number,
            "category_id": 1,
            "segmentation": record.rle,
            "score": record.confidence if record.confidence is not None else record.score,
            "sentence_id": record.id,
            "phrase": record.phrase,
            "file_name": record.picture,
        }
        for number, record in enumerate(records, start=1)
        if record.matched
    ]


def refer_layout(records: Iterable[SentenceRecord]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the answers as a data set in REFER's layout: refs, and instances with their images.

    Every answered sentence is a ref with one annotation, in the split "val".
    """
    images: dict[str, dict[str, Any]] = {}
    refs: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        height, width = record.rle["size"]
        entry = {"id": len(images) + 1, "file_name": record.picture, "height": height, "width": width}
        image = images.setdefault(record.picture, entry)
        if not record.matched:
            continue
        number = len(refs) + 1
        mask = decode_segmentation(record.rle, (height, width))
        annotations.append(_annotation(number, image["id"], record.rle, mask))
        refs.append(
            {
                "ref_id": number,
                "ann_id": number,
                "image_id": image["id"],
                "category_id": 1,
                "file_name": record.picture,
                "split": "val",
                "sent_ids": [number],
                "sentences": [
                    {
                        "sent_id": number,
                        "sent": record.phrase,
                        "raw": record.phrase,
                        "tokens": record.phrase.split(),
                    }
                ],
            }
        )
    categories = [{"id": 1, "name": "object"}]
    return refs, {"images": list(images.values()), "annotations": annotations, "categories": categories}


def _annotation(number: int, image_id: int, rle: Mapping[str, Any], mask: Bool) -> dict[str, Any]:
    rows, columns = (np.flatnonzero(np.any(mask, axis=axis)) for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "segmentation": dict(rle),
        "area": int(mask.sum()),
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "iscrowd": 0,
    }
