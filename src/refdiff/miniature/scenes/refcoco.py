"""Rendered scenes in the folder layout of RefCOCO.

In: seeds. Out: a folder with

    images/<seed>.png
    instances.json   COCO: images, annotations (uncompressed RLE, column-major; bbox x, y, w, h), categories
    refs.json        [{ref_id, ann_id, image_id, category_id, file_name, split, sent_ids, sentences: [...]}]

RefCOCO itself pickles its refs; JSON holds the same fields and is safe to open.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np
from PIL import Image

from refdiff.errors import InputError
from refdiff.miniature.scenes.canvas import Bool
from refdiff.miniature.scenes.phrases import refer
from refdiff.miniature.scenes.scene import RenderedScene, SceneObject, render_scene
from refdiff.miniature.scenes.shapes import KINDS

Record: TypeAlias = dict[str, object]

SENTENCES_PER_OBJECT = 3
"""Most sentences of an object; RefCOCO has 2.8 on average."""

_CATEGORY_IDS = {kind: number for number, kind in enumerate(KINDS, start=1)}


def encode_rle(mask: Bool) -> Record:
    """Encode a mask as COCO's uncompressed run lengths.

    Args:
        mask: [y, x].

    Returns:
        `counts`, runs down the columns, starting with the (possibly empty) run of False; and `size`, [h, w].
    """
    flat = mask.ravel(order="F")  # [x*y]
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": list(mask.shape)}


@dataclass
class _Annotations:
    """The records collected so far; an id is a position in its table, from 1."""

    split: str
    images: list[Record] = field(default_factory=list)
    annotations: list[Record] = field(default_factory=list)
    refs: list[Record] = field(default_factory=list)
    sentences: int = 0

    def add(self, scene: RenderedScene, file_name: str) -> None:
        """Add a scene: its image, its objects and the phrases about them."""
        height, width = scene.image.shape[:2]
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        sentences = _sentences(scene)
        for index, item in enumerate(scene.objects):
            annotation = self._annotation(item, scene.masks[index], image_id)
            self.annotations.append(annotation)
            if sentences[index]:
                self.refs.append(self._ref(annotation, file_name, sentences[index]))

    def _annotation(self, item: SceneObject, mask: Bool, image_id: int) -> Record:
        left, top, right, bottom = item.box_xyxy
        return {
            "id": len(self.annotations) + 1,
            "image_id": image_id,
            "category_id": _CATEGORY_IDS[item.kind],
            "segmentation": encode_rle(mask),
            "area": item.area_px,
            "bbox": [left, top, right - left, bottom - top],
            "iscrowd": 0,
        }

    def _ref(self, annotation: Record, file_name: str, phrases: list[str]) -> Record:
        sentences = []
        for phrase in phrases:
            self.sentences += 1
            words = {"raw": phrase, "sent": phrase, "tokens": phrase.split()}
            sentences.append({"sent_id": self.sentences, **words})
        return {
            "ref_id": len(self.refs) + 1,
            "ann_id": annotation["id"],
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "file_name": file_name,
            "split": self.split,
            "sent_ids": [sentence["sent_id"] for sentence in sentences],
            "sentences": sentences,
        }

    def write(self, folder: Path) -> None:
        """Write both JSON files into `folder`."""
        categories = [{"id": number, "name": kind} for kind, number in _CATEGORY_IDS.items()]
        instances = {"images": self.images, "annotations": self.annotations, "categories": categories}
        (folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
        (folder / "refs.json").write_text(json.dumps(self.refs), encoding="utf-8")


def _sentences(scene: RenderedScene) -> list[list[str]]:
    """Draw different phrases for each object; none if it cannot be singled out."""
    rng = np.random.default_rng(scene.seed)
    sentences: list[dict[str, None]] = [{} for _ in scene.objects]
    for _ in range(SENTENCES_PER_OBJECT):
        for referral in refer(scene, rng):
            sentences[referral.target][referral.phrase] = None
    return [list(phrases) for phrases in sentences]


def _check_target(folder: Path, seeds: list[int]) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder that is new or empty; choose another")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is not empty, expected a folder that is new or empty; choose another or empty it"
        )
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"got {len(seeds)} seeds, expected at least one, all different and 0 or more")


def write_refcoco(folder: Path, seeds: Iterable[int], *, split: str = "val") -> None:
    """Render scenes into `folder`, in the layout of RefCOCO.

    The folder appears complete or not at all: it is written under another name and then renamed.

    Args:
        folder: new or empty.
        seeds: of the scenes, all different.
        split: split of every ref.

    Raises:
        InputError: `folder` is not empty, or the seeds cannot be used.
    """
    ordered = list(seeds)
    _check_target(folder, ordered)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        draft = Path(scratch) / folder.name
        (draft / "images").mkdir(parents=True)
        tables = _Annotations(split)
        for seed in ordered:
            scene, file_name = render_scene(seed), f"{seed:08d}.png"
            Image.fromarray(scene.image).save(draft / "images" / file_name)
            tables.add(scene, file_name)
        tables.write(draft)
        if folder.exists():
            folder.rmdir()  # empty, as checked; a rename onto it is refused on some systems
        draft.rename(folder)
