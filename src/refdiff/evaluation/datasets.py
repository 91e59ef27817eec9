"""Find the data sets below a folder, choose among them, and put their samples in the order of pictures.

In: a root folder, or a CSV or COCO file. Out: a `Selection`, the dataset that `evaluate` takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.data.labelled import (
    coco_subset,
    csv_subset,
    drop_wrong_captions,
    folder_subset,
    reason_subsets,
)
from refdiff.data.parquet import parquet_subsets
from refdiff.data.refer import Subset, check_image_files, refer_subsets
from refdiff.data.sample import Sample
from refdiff.errors import InputError

KNOWN = (
    "a REFER tree (refcoco/refs(unc).p and instances.json), parquet tables of jxu124/refcoco-benchmark or "
    "jxu124/refcoco, grefcoco/grefs(unc).json, ReasonSeg (val/*.json), images/ with masks/, a CSV file with "
    "image,phrase,mask, or a COCO file"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """The sentences to evaluate, sorted by picture across data sets."""

    subsets: tuple[Subset, ...]
    samples: tuple[Sample, ...]
    partial: frozenset[str]
    """Names of the subsets that are not evaluated whole, or are not the published ones."""

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        """Yield the sentences; those of one picture follow each other."""
        return iter(self.samples)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Names and numbers of sentences of the subsets."""
        return {"kind": "data sets", "subsets": {each.name: len(each.samples) for each in self.subsets}}

    @property
    def pictures(self) -> int:
        """Number of different pictures."""
        return len({sample.picture for sample in self.samples})


def find_subsets(root: Path) -> list[Subset]:
    """Return the data sets that are at `root`.

    Args:
        root: a folder of data sets, or a CSV or COCO file of one.

    Raises:
        InputError: nothing is there, or something is damaged or incomplete.
        MissingDependencyError: a package that reads it is not installed.
    """
    if root.is_file():
        return [csv_subset(root) if root.suffix.lower() == ".csv" else coco_subset(root)]
    if not root.is_dir():
        raise InputError(f"{root} does not exist, expected {KNOWN}")
    if (root / "images").is_dir() and (root / "masks").is_dir():
        return [folder_subset(root)]
    found = [*refer_subsets(root), *parquet_subsets(root), *reason_subsets(root)]
    if not found:
        raise InputError(f"{root} holds no data set that is known, expected {KNOWN}")
    counts: dict[str, Path] = {}
    for subset in found:
        if subset.name in counts:
            raise InputError(
                f"{subset.name} is in {counts[subset.name]} and in {subset.source}; keep one of them"
            )
        counts[subset.name] = subset.source
    return found


def select(
    found: Sequence[Subset],
    *,
    names: Sequence[str] = (),
    reviews: Sequence[Path] = (),
    limit: int | None = None,
    shard: tuple[int, int] = (1, 1),
    allow_partial: bool = False,
) -> Selection:
    """Choose the sentences to evaluate.

    Args:
        found: from `find_subsets`.
        names: beginnings of names of subsets, such as "RefCOCO+" or "RefCOCO (unc, val)", or parts of what is
            in the brackets, such as "testA"; none: all.
        reviews: files of Ref-L4's review; the subsets they are about lose the sentences marked as wrong.
        limit: only the first pictures.
        shard: (i, n): only the i-th of n parts of the pictures, from 1.
        allow_partial: accept a published subset with another number of refs.

    Raises:
        InputError: no subset is left, one is incomplete, images are missing, or an option cannot be used.
    """
    part, parts = shard
    if not 1 <= part <= parts or (limit is not None and limit < 1):
        raise InputError(f"got limit {limit} and shard {part}/{parts}, expected 1 or more, and 1/n to n/n")
    chosen = [each for each in found if not names or any(_is_called(each, name) for name in names)]
    if not chosen:
        have = "; ".join(each.name for each in found)
        raise InputError(f"no subset is called {', '.join(names)}; choose from: {have}")
    partial = {each.name for each in chosen if not _is_whole(each, allow_partial=allow_partial)}
    if reviews:
        chosen = drop_wrong_captions(chosen, reviews)
    for subset in chosen:
        if not subset.samples:
            raise InputError(f"{subset.name} in {subset.source} has no sentence; download it again")
        check_image_files(subset)
    samples = [each for subset in chosen for each in subset.samples]
    samples.sort(key=lambda each: each.picture)
    pictures = list(dict.fromkeys(each.picture for each in samples))
    kept = set(pictures[:limit][part - 1 :: parts])
    whole = len(kept) == len(pictures)
    return Selection(
        subsets=tuple(chosen),
        samples=tuple(each for each in samples if each.picture in kept),
        partial=frozenset(partial if whole else {each.name for each in chosen}),
    )


def _is_called(subset: Subset, name: str) -> bool:
    full, lower = subset.name.lower(), name.lower()
    title, _, inside = full.partition(" (")
    return lower == title or lower in inside or (" (" in lower and full.startswith(lower))


def _is_whole(subset: Subset, *, allow_partial: bool) -> bool:
    expected = subset.published_refs
    if expected in (None, subset.refs):
        return True
    if not allow_partial:
        raise InputError(
            f"{subset.name} has {subset.refs} refs in {subset.source}, expected {expected}; download it "
            "again, or evaluate what is there (--partial)"
        )
    return False
