"""RefCOCO, RefCOCO+ and RefCOCOg as parquet tables, in the two forms that the Hugging Face hub serves.

    jxu124/refcoco-benchmark   a row per image: its file's bytes, and a list of refs with their annotations
    jxu124/refcoco             a row per ref, with its annotation as JSON; images are COCO files nearby

In: the root folder. Out: `Subset`s. Images inside a table are read when they are needed.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from refdiff.data.refer import IMAGE_FOLDERS, SPLITS, ImageFiles, Subset, subset_name
from refdiff.data.sample import ImageSource, Sample
from refdiff.data.truth import AnnotatedTruth, require_eval
from refdiff.errors import InputError

_TITLES = (("refcocog", "RefCOCOg"), (r"refcoco[-_]?(\+|plus)", "RefCOCO+"), ("refcoco", "RefCOCO"))
_BY = {"RefCOCO": "unc", "RefCOCO+": "unc", "RefCOCOg": "umd"}
_SPLITS = {"validation": "val", "test": "test"}
"""Names of the hub's files for splits that REFER calls otherwise."""

_NAMED = re.compile(
    r"(?P<title>refcocog|refcoco_plus|refcoco)_(?P<by>unc|umd|google)_(?P<split>val|testA|testB|test)"
)


@dataclass(frozen=True)
class TableImage:
    """An image file inside a parquet table."""

    table: Path
    row: int

    def read_bytes(self) -> bytes:
        """Return the bytes of the image file.

        Raises:
            InputError: the table is damaged, or the row holds no image.
        """
        cell = _images(self.table)[self.row]
        data = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if not isinstance(data, bytes):
            raise InputError(f"{self.table}, row {self.row} holds no image; download it again")
        return data


def parquet_subsets(root: Path) -> Iterator[Subset]:
    """Yield the subsets of every parquet table below `root`.

    Raises:
        InputError: a table is damaged or lacks the masks, or images are missing.
        MissingDependencyError: pyarrow is not installed.
    """
    found: dict[str, list[Subset]] = defaultdict(list)
    for path in sorted(root.rglob("*.parquet")):
        for subset in _table_subsets(root, path):
            found[subset.name].append(subset)
    for name, parts in found.items():  # a split may be cut into several files
        yield Subset(
            name=name,
            samples=[sample for part in parts for sample in part.samples],
            refs=sum(part.refs for part in parts),
            source=parts[0].source,
        )


def _table_subsets(root: Path, path: Path) -> Iterator[Subset]:
    columns = set(_read(path, None))
    if {"ref_list", "image"} <= columns:
        yield from _by_image(path)
    elif {"sentences", "raw_anns", "raw_image_info"} <= columns:
        yield from _by_ref(root, path)
    else:
        raise InputError(
            f"{path} has the columns {', '.join(sorted(columns))}; expected refs with whole annotations, as "
            "in jxu124/refcoco-benchmark or jxu124/refcoco; other tables keep one polygon and mix splits"
        )


def _by_image(path: Path) -> Iterator[Subset]:
    named = _NAMED.search(path.name)
    if named is None:
        raise InputError(
            f"{path} is named after no split, expected a name such as refcoco_unc_val-00000-of-00001.parquet"
        )
    title = {"refcoco": "RefCOCO", "refcoco_plus": "RefCOCO+", "refcocog": "RefCOCOg"}[named["title"]]
    name = subset_name(title, named["by"], named["split"])
    samples: list[Sample] = []
    count = 0
    rows = _read(path, ["ref_list"])["ref_list"]
    for row, refs in enumerate(rows):
        for ref in _items(refs, path, row):
            with _row_errors(path, row):
                info, image = ref["ref_info"], ref["image_info"]
                samples += _samples(name, info, [ref["ann_info"]], image, TableImage(path, row))
            count += 1
    yield Subset(name=name, samples=samples, refs=count, source=path)


def _by_ref(root: Path, path: Path) -> Iterator[Subset]:
    title = next((title for pattern, title in _TITLES if re.search(pattern, str(path).lower())), None)
    if title is None:
        raise InputError(
            f"{path} is in no folder called refcoco, refcocoplus or refcocog; name the folder so"
        )
    by = "google" if "google" in str(path.relative_to(root)).lower() else _BY[title]
    bases = [path.parent, path.parent.parent, root]
    folders = [base / name for base in bases for name in IMAGE_FOLDERS if (base / name).is_dir()]
    files = ImageFiles(folders=list(dict.fromkeys(folders)))
    table = _read(path, None)
    splits: dict[str, list[Sample]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for row, split in enumerate(table["split"]):
        with _row_errors(path, row):
            named = _SPLITS.get(split, split)
            if named not in SPLITS:
                continue
            info = {key: table[key][row] for key in ("ref_id", "sentences")}
            annotation, image = json.loads(table["raw_anns"][row]), json.loads(table["raw_image_info"][row])
            name = subset_name(title, by, named)
            splits[name] += _samples(name, info, [annotation], image, files.find(image["file_name"]))
            counts[name] += 1
    for name, samples in splits.items():
        yield Subset(name=name, samples=samples, refs=counts[name], source=path)


def _samples(
    name: str, ref: Mapping[str, Any], annotations: list[Any], image: Mapping[str, Any], source: ImageSource
) -> list[Sample]:
    truth = AnnotatedTruth(
        name=f"{name}, ref {ref['ref_id']}",
        segmentations=[each["segmentation"] for each in annotations],
        size_yx=(int(image["height"]), int(image["width"])),
    )
    return [
        Sample(
            id=f"{name}, ref {ref['ref_id']}, sentence {sentence['sent_id']}",
            image=source,
            phrase=str(sentence["sent"]),
            truth=truth,
            subset=name,
            picture=str(image["file_name"]),
        )
        for sentence in ref["sentences"]
    ]


@contextmanager
def _row_errors(path: Path, row: int) -> Iterator[None]:
    """Name the table and the row of an error."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}, row {row} lacks a field or is damaged ({error!r}); download it again"
        ) from error


def _items(refs: Any, path: Path, row: int) -> list[Any]:
    if not isinstance(refs, list):
        raise InputError(f"{path}, row {row} holds no list of refs; download it again")
    return refs


def _read(path: Path, columns: list[str] | None) -> dict[str, list[Any]]:
    """Read columns of a table as lists; all but the images, if no columns are named."""
    with require_eval("reading a parquet table"):
        import pyarrow
        from pyarrow import parquet
    try:
        names = columns or [name for name in parquet.read_schema(path).names if name != "image"]
        content = parquet.read_table(path, columns=names).to_pydict()
        if columns is None and "image" in parquet.read_schema(path).names:
            content["image"] = []
        return dict(content)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is no sound parquet table ({reason}); download it again") from error


@lru_cache(maxsize=2)
def _images(path: Path) -> list[Any]:
    """Return the images of a table; the last tables are kept, as samples come in the order of pictures."""
    return _read(path, ["image"])["image"]
