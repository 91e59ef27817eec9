"""Rendered training scenes on disk, and their phrases as the text encoders take them.

A shard is written once by one process and read as memory maps. It is three files: `N.images` and `N.labels`
(flat uint8), `N.json` (sizes, objects, phrases). A label is 0 for the table and i + 1 for object i.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.miniature.architecture import MINIATURE
from refdiff.miniature.scenes import HELD_OUT_FROM, refer, render_scene
from refdiff.runtime.phrase import direction, parse_phrase
from refdiff.runtime.spatial import Direction
from refdiff.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodedPhrase:
    """A phrase as both text encoders take it."""

    diffusion_ids: NDArray[np.int32]
    """[77], tokens of the phrase + ", " (METHOD §4.3)."""
    root_index: int
    """Position of the root word's token."""
    last_index: int
    """Position of the last token."""
    clip_ids: NDArray[np.int32]
    """[77], tokens of the phrase."""
    clip_end: int
    """Position of the end token."""
    root: str
    direction: Direction


class PhraseEncoder:
    """Encodes phrases; each distinct phrase is tokenized once."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = Tokenizer(tokenizer_json, MINIATURE.context_length)
        self._encoded: dict[str, EncodedPhrase] = {}

    def encode(self, text: str) -> EncodedPhrase:
        """Return the encoded phrase."""
        if text not in self._encoded:
            self._encoded[text] = self._tokenize(text)
        return self._encoded[text]

    def empty_ids(self) -> NDArray[np.int32]:
        """Return the tokens of the unconditional prompt, [77]."""
        return self._tokenizer.diffusion_ids("")

    def _tokenize(self, text: str) -> EncodedPhrase:
        phrase = parse_phrase(text, word_boundaries=True)
        ids, end = self._tokenizer.clip_ids(text)
        return EncodedPhrase(
            diffusion_ids=self._tokenizer.diffusion_ids(text + ", "),
            root_index=self._tokenizer.focus_indices(phrase, "root")[0],
            last_index=self._tokenizer.focus_indices(phrase, "last")[0],
            clip_ids=ids,
            clip_end=end,
            root=phrase.root,
            direction=direction(text, word_boundaries=True),
        )


PHRASE_DRAWS = 3
"""Phrases that are drawn for each object of a scene."""


@dataclass(frozen=True)
class TrainingScene:
    """A rendered scene with its phrases."""

    image: NDArray[np.uint8]
    """[y, x, 3] RGB."""
    labels: NDArray[np.uint8]
    """[y, x]: 0 for the table, i + 1 for object i."""
    objects: tuple[dict[str, Any], ...]
    """The fields of each `SceneObject`."""
    phrases: tuple[tuple[str, int], ...]
    """(phrase, index of its object)."""

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return the visible pixels [y, x] of object `index`."""
        return np.asarray(self.labels == index + 1)


def render_shard(folder: Path, number: int, first_seed: int, count: int) -> None:
    """Render `count` scenes into shard `number`; a finished shard is kept.

    Raises:
        ValueError: a seed lies in the held-out range.
    """
    if first_seed + count > HELD_OUT_FROM:
        raise ValueError(f"seeds {first_seed}..{first_seed + count} reach the held-out range {HELD_OUT_FROM}")
    target = folder / f"{number}.json"
    if target.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    with (
        (folder / f"{number}.images").open("wb") as images,
        (folder / f"{number}.labels").open("wb") as labels,
    ):
        for seed in range(first_seed, first_seed + count):
            scene = render_scene(seed)
            rng = np.random.default_rng((seed, 1))
            drawn = [r for _ in range(PHRASE_DRAWS) for r in refer(scene, rng)]
            images.write(scene.image.tobytes())
            label = (scene.masks * np.arange(1, len(scene.masks) + 1, dtype=np.uint8)[:, None, None]).max(
                axis=0
            )
            labels.write(label.astype(np.uint8).tobytes())
            records.append(
                {
                    "size": scene.image.shape[:2],
                    "objects": [dataclasses.asdict(o) for o in scene.objects],
                    "phrases": [(r.phrase, r.target) for r in drawn],
                }
            )
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(records))
    partial.rename(target)


class SceneStore:
    """The scenes of all finished shards of a folder; a scene without a phrase is skipped."""

    def __init__(self, folder: Path) -> None:
        self._records: list[tuple[NDArray[np.uint8], NDArray[np.uint8], int, dict[str, Any]]] = []
        for index in sorted(folder.glob("*.json")):
            images = np.memmap(index.with_suffix(".images"), np.uint8, "r")
            labels = np.memmap(index.with_suffix(".labels"), np.uint8, "r")
            offset = 0
            for record in json.loads(index.read_text()):
                if record["phrases"]:
                    self._records.append((images, labels, offset, record))
                offset += record["size"][0] * record["size"][1]

    def __len__(self) -> int:
        return len(self._records)

    def first(self, count: int) -> SceneStore:
        """Return a store of the first `count` scenes."""
        cut = copy.copy(self)
        cut._records = self._records[:count]
        return cut

    def __getitem__(self, index: int) -> TrainingScene:
        images, labels, offset, record = self._records[index]
        height, width = record["size"]
        end = offset + height * width
        return TrainingScene(
            image=np.asarray(images[3 * offset : 3 * end]).reshape(height, width, 3),
            labels=np.asarray(labels[offset:end]).reshape(height, width),
            objects=tuple(record["objects"]),
            phrases=tuple((phrase, target) for phrase, target in record["phrases"]),
        )
