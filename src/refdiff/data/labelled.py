"""A user's own labeled images, ReasonSeg, and the reviews of Ref-L4.

    FILE.csv            header image,phrase,mask: names relative to the file; no mask: nothing is referred to
    FILE.json           a COCO file; the phrase of an annotation is its `caption`, or its category's name
    ROOT/images/NAME.*  with ROOT/masks/NAME/the-red-mug.png: the mask's name is the phrase
    ROOT/val/*.json     ReasonSeg: `text`, `shapes` with `label` and `points`, next to the image

In: a file or a folder. Out: `Subset`s.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from refdiff.contracts.plain_file import open_plain, read_plain
from refdiff.data.folder import IMAGE_SUFFIXES
from refdiff.data.refer import Subset, by_id, load_data_json, subset_name
from refdiff.data.sample import Sample
from refdiff.data.truth import AnnotatedTruth, MaskFile, PaintedTruth
from refdiff.errors import InputError
from refdiff.runtime.image import read_image

CSV_HEADER = ["image", "phrase", "mask"]

REASON_SPLITS = ("val", "test")


def csv_subset(path: Path) -> Subset:
    """Read a CSV file of images, phrases and mask files.

    Raises:
        InputError: it is no such file.
    """
    try:
        with io.TextIOWrapper(open_plain(path), encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a CSV file of UTF-8") from error
    if not rows or rows[0] != CSV_HEADER:
        first = ",".join(rows[0]) if rows else ""
        raise InputError(f"{path} begins with {first!r}, expected the header {','.join(CSV_HEADER)}")
    samples = [_csv_sample(path, line, row) for line, row in enumerate(rows[1:], start=2) if row]
    return _subset(path.stem, samples, path)


def _csv_sample(path: Path, line: int, row: Sequence[str]) -> Sample:
    if len(row) != len(CSV_HEADER) or not row[0].strip() or not row[1].strip():
        raise InputError(f"{path}, line {line} has {len(row)} fields, expected an image, a phrase and a mask")
    name, phrase, mask = (field.strip() for field in row)
    image = path.parent / name
    truth = MaskFile(path=path.parent / mask) if mask else _no_target(f"{path}, line {line}", image)
    return Sample(
        id=f"{path.stem}, line {line}",
        image=image,
        phrase=phrase,
        truth=truth,
        subset=path.stem,
        picture=str(image),
    )


def coco_subset(path: Path) -> Subset:
    """Read a COCO file; images lie next to it, or in a folder `images` next to it.

    Raises:
        InputError: it is no such file.
    """
    document = load_data_json(path)
    images = by_id(document, "images", path)
    categories = by_id(document, "categories", path) if document.get("categories") else {}
    samples: list[Sample] = []
    for number, entry in by_id(document, "annotations", path).items():
        try:
            image = images[entry["image_id"]]
            phrase = entry.get("caption") or categories[entry["category_id"]]["name"]
            truth = AnnotatedTruth(
                name=f"{path}, annotation {number}",
                segmentations=[entry["segmentation"]],
                size_yx=(int(image["height"]), int(image["width"])),
            )
            file = _locate(path, str(image["file_name"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path}, annotation {number} lacks a field, or names an image or a category that is not "
                f"there ({error!r}); correct it"
            ) from error
        samples.append(
            Sample(
                id=f"{path.stem}, annotation {number}",
                image=file,
                phrase=str(phrase),
                truth=truth,
                subset=path.stem,
                picture=str(file),
            )
        )
    return _subset(path.stem, samples, path)


def _locate(path: Path, name: str) -> Path:
    places = [path.parent / name, path.parent / "images" / name]
    return next((place for place in places if place.is_file()), places[0])


def folder_subset(root: Path) -> Subset:
    """Read a folder of images and a folder of masks that are named after their phrases.

    Raises:
        InputError: there is no mask.
    """
    samples = []
    for image in sorted((root / "images").iterdir()):
        if image.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        for mask in sorted((root / "masks" / image.stem).glob("*.png")):
            phrase = mask.stem.replace("-", " ").replace("_", " ")
            samples.append(
                Sample(
                    id=f"{root.name}, {image.stem}/{mask.stem}",
                    image=image,
                    phrase=phrase,
                    truth=MaskFile(path=mask),
                    subset=root.name,
                    picture=str(image),
                )
            )
    return _subset(root.name, samples, root)


def reason_subsets(root: Path) -> Iterator[Subset]:
    """Yield the splits of ReasonSeg at `root`, or in a folder `ReasonSeg` below it.

    Only the first text of an image counts, as in LISA's evaluation. Files without a shape of the target are
    left out and counted in the subset's name.

    Raises:
        InputError: an annotation is damaged, or its image is missing.
    """
    for base in (root, root / "ReasonSeg", root / "reason_seg" / "ReasonSeg"):
        for split in REASON_SPLITS:
            files = sorted((base / split).glob("*.json"))
            if files and not (base / "images").is_dir():
                name = subset_name("ReasonSeg", "LISA", split)
                samples = [each for path in files if (each := _reason_sample(name, path)) is not None]
                yield _subset(name, samples, base / split)


def _reason_sample(subset: str, path: Path) -> Sample | None:
    image = path.with_suffix(".jpg")
    try:
        document = _read_either(path)
        text, shapes = document["text"], document["shapes"]
        phrase = str(text[0] if isinstance(text, list) else text)
        targets = [shape for shape in shapes if str(shape["label"]).lower() not in ("flag", "ignore")]
        with Image.open(image, formats=("JPEG", "PNG")) as opened:
            size_yx = opened.size[::-1]
    except (KeyError, TypeError, IndexError, OSError, ValueError) as error:
        raise InputError(f"{path} or its image cannot be read ({error!r}); download both again") from error
    if not targets:
        return None
    return Sample(
        id=f"{subset}, {path.stem}",
        image=image,
        phrase=phrase,
        truth=PaintedTruth(name=str(path), shapes=shapes, size_yx=size_yx),
        subset=subset,
        picture=str(image),
    )


def _read_either(path: Path) -> Any:
    """Read JSON in UTF-8, or in cp1252 as some files of ReasonSeg are."""
    data = read_plain(path)
    try:
        return json.loads(data)
    except UnicodeDecodeError:
        return json.loads(data.decode("cp1252"))


def drop_wrong_captions(subsets: Sequence[Subset], reviews: Sequence[Path]) -> list[Subset]:
    """Drop the sentences that the review of Ref-L4 marks as wrong (`caption_quality` 0).

    A review is joined to a subset by its file's name (`refcoco+_testA_reviewed.json`), and to a sentence by
    image and text. The names of its other fields are not relied on.

    Args:
        subsets: of RefCOCO, RefCOCO+ or RefCOCOg.
        reviews: files of `refcocos_annotation_reviewed`.

    Returns:
        The subsets that have a review; their names end in ", reviewed".

    Raises:
        InputError: a review cannot be read, or fits no sentence.
    """
    wrong = {path.stem.lower().removesuffix("_reviewed"): _wrong_captions(path) for path in reviews}
    kept = []
    for subset in subsets:
        title, _, rest = subset.name.partition(" (")
        key = f"{title}_{rest.split(', ')[1].rstrip(')')}".lower()
        if key not in wrong:
            continue
        samples = [
            each for each in subset.samples if _review_key(each.picture, each.phrase) not in wrong[key]
        ]
        if wrong[key] and len(samples) == len(subset.samples):
            raise InputError(f"no sentence of {subset.name} is in its review; take the review of this split")
        name = f"{subset.name[:-1]}, reviewed)"
        samples = [dataclasses.replace(each, subset=name) for each in samples]
        kept.append(dataclasses.replace(subset, name=name, samples=samples))
    return kept


def _wrong_captions(path: Path) -> set[tuple[str, str]]:
    document = load_data_json(path)
    entries = document.get("annotations", document) if isinstance(document, Mapping) else document
    images = (
        {each.get("id"): each for each in document.get("images", [])} if isinstance(document, Mapping) else {}
    )
    wrong = set()
    try:
        for entry in entries:
            if int(entry["caption_quality"]) == 0:
                image = entry.get("file_name") or images[entry["image_id"]]["file_name"]
                wrong.add(_review_key(str(image), str(entry["caption"])))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is no review of Ref-L4 ({error!r}); expected caption, caption_quality and file_name"
        ) from error
    return wrong


def _review_key(image: str, text: str) -> tuple[str, str]:
    return Path(image).stem, " ".join(text.lower().split())


def _no_target(name: str, image: Path) -> AnnotatedTruth:
    height, width = read_image(image, name=name).shape[:2]
    return AnnotatedTruth(name=name, segmentations=[], size_yx=(height, width))


def _subset(name: str, samples: Sequence[Sample], source: Path) -> Subset:
    if not samples:
        raise InputError(f"{source} holds no image with a phrase and a mask; add some, or name another place")
    return Subset(name=name, samples=samples, refs=len(samples), source=source)
