"""The documents of Label Studio: regions of its brush, tasks with predictions, and a labeling interface.

The names of the tags are those that `label_config` writes, unless others are given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

from refdiff.contracts.session import Bool
from refdiff.runtime.masks import to_brush_rle


def label_config(labels: Iterable[str]) -> str:
    """Return a labeling interface with a brush for each label."""
    rows = "\n".join(f"    <Label value={quoteattr(label)}/>" for label in labels)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n  <BrushLabels name="mask" toName="image">\n'
        f"{rows}\n  </BrushLabels>\n</View>\n"
    )


def prediction_task(
    file: str, source: str, answers: Iterable[tuple[Mapping[str, Any], Bool]]
) -> dict[str, Any]:
    """Return a task to import: an image with one prediction, which has a region for each answer.

    Args:
        file: the image below `images/`, which is below the root of Label Studio's local files.
        source: the name that the image had before.
        answers: a line of `results.jsonl` with its mask [y, x].
    """
    data = {"image": f"/data/local-files/?d=images/{file}", "original_name": source}
    regions, version = [], ""
    for line, mask in answers:
        phrase, version = line["phrase"], f"refdiff-{line['model']}"
        regions.append(brush_region(mask, phrase, region=region_id(file, phrase), score=line["confidence"]))
    return {"data": data, "predictions": [prediction(regions, version)] if regions else []}


def prediction(regions: list[dict[str, Any]], version: str) -> dict[str, Any]:
    """Return regions as one prediction; its score is the lowest confidence that is known."""
    scores = [region["score"] for region in regions if "score" in region]
    return {"model_version": version, "score": min(scores, default=None), "result": regions}


def region_id(*parts: str) -> str:
    """Return the same id for the same texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]


def brush_region(
    mask: Bool,
    label: str | None,
    *,
    region: str,
    score: float | None = None,
    from_name: str = "mask",
    to_name: str = "image",
) -> dict[str, Any]:
    """Return a mask as a region of the brush.

    Args:
        mask: [y, x].
        label: one of those of the tag `from_name`; None: the region has none, and the annotator chooses
            it. Then the key `brushlabels` is left out, as Label Studio itself does for such regions: an
            empty list can mean the label "empty" (`allowempty`), and its converter needs a name in it.
        region: the region's id.
        score: 0..1; None: not known.
        from_name: name of the tag BrushLabels.
        to_name: name of the tag Image.
    """
    height, width = mask.shape
    return {
        "id": region,
        "type": "brushlabels",
        "from_name": from_name,
        "to_name": to_name,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "origin": "prediction",
        "value": {
            "format": "rle",
            "rle": list(to_brush_rle(mask)),
            **({} if label is None else {"brushlabels": [label]}),
        },
        **({} if score is None else {"score": score}),
    }
