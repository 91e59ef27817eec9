"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO in the layout of the REFER tool.

    ROOT/refcoco/refs(unc).p          a pickled list of refs; refs(unc).json is accepted, too
    ROOT/refcoco/instances.json       COCO images and annotations
    ROOT/grefcoco/grefs(unc).json     refs with any number of annotations, or none
    ROOT/images/mscoco/images/train2014/COCO_train2014_000000000009.jpg

In: the root folder. Out: `Subset`s, one for each data set, split author and split. Pickles are read by an
unpickler that knows no class or function, so that a file can hold data and nothing else.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refdiff.contracts.plain_file import read_plain
from refdiff.data.sample import Sample
from refdiff.data.truth import AnnotatedTruth
from refdiff.errors import InputError

TITLES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg", "grefcoco": "gRefCOCO"}
"""Folder of a data set -> its name in tables."""

SPLITS = ("val", "test", "testA", "testB")
"""Splits that are evaluated; the methods of this project have no training."""

PUBLISHED_REFS = {
    "RefCOCO (unc, val)": 3811,
    "RefCOCO (unc, testA)": 1975,
    "RefCOCO (unc, testB)": 1810,
    "RefCOCO+ (unc, val)": 3805,
    "RefCOCO+ (unc, testA)": 1975,
    "RefCOCO+ (unc, testB)": 1798,
    "RefCOCOg (umd, val)": 2573,
    "RefCOCOg (umd, test)": 5023,
}
"""Refs of the published splits, from the card of the data set jxu124/refcoco-benchmark and of REFER."""

IMAGE_FOLDERS = (
    "images/mscoco/images/train2014",
    "images/train2014",
    "coco/train2014",
    "train2014",
    "images",
    "",
)
"""Where images are looked for, below the root and below the data set's folder."""

_REFS_FILE = re.compile(r"g?refs\((?P<split_by>\w+)\)\.(p|json)")


def subset_name(title: str, split_by: str, split: str) -> str:
    """Return the full name of a subset, such as "RefCOCO (unc, val)"."""
    return f"{title} ({split_by}, {split})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Subset:
    """One split of a data set, ready to be evaluated."""

    name: str
    """Such as "RefCOCO (unc, val)"."""
    samples: Sequence[Sample]
    refs: int
    """Number of referred objects; each has one or more sentences."""
    source: Path
    """The file that the sentences were read from."""

    @property
    def published_refs(self) -> int | None:
        """Number of refs of the published split, None where it is not known."""
        return PUBLISHED_REFS.get(self.name)


class _DataUnpickler(pickle.Unpickler):
    """Reads pickled lists, dictionaries, numbers and texts; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and data needs no code")


def load_data_pickle(path: Path) -> Any:
    """Read a pickle that holds data only, also one that Python 2 wrote.

    Raises:
        InputError: it cannot be read, is damaged, or asks for a class or a function.
    """
    try:
        return _DataUnpickler(io.BytesIO(read_plain(path)), encoding="latin1").load()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise InputError(f"{path} is no sound pickle of data ({error}); download it again") from error


def load_data_json(path: Path) -> Any:
    """Read a JSON file of a data set.

    Raises:
        InputError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(read_plain(path))
    except (OSError, RecursionError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); download it again") from error


@dataclass(frozen=True, eq=False)
class RefTable:
    """Refs, annotations and images of one data set, joined by their ids."""

    title: str
    split_by: str
    source: Path
    refs: Sequence[Mapping[str, Any]]
    annotations: Mapping[int, Mapping[str, Any]]
    images: Mapping[int, Mapping[str, Any]]
    image_files: ImageFiles

    def subsets(self) -> Iterator[Subset]:
        """Yield the subsets of `SPLITS` that have refs.

        Raises:
            InputError: a ref lacks a field, or names an image or an annotation that is not there.
        """
        for split in SPLITS:
            name = subset_name(self.title, self.split_by, split)
            refs = [ref for ref in self.refs if ref.get("split") == split]
            seen: dict[Any, None] = {}
            samples = [sample for ref in refs for sample in self._samples(name, ref, seen)]
            if refs:
                yield Subset(name=name, samples=samples, refs=len(refs), source=self.source)

    def _samples(self, subset: str, ref: Mapping[str, Any], seen: dict[Any, None]) -> Iterator[Sample]:
        try:
            image = self.images[ref["image_id"]]
            annotation_ids = _annotation_ids(ref)
            truth = AnnotatedTruth(
                name=f"{subset}, ref {ref['ref_id']}",
                segmentations=[self.annotations[each]["segmentation"] for each in annotation_ids],
                size_yx=(int(image["height"]), int(image["width"])),
            )
            for sentence in ref["sentences"]:
                key = sentence["sent_id"], ref["ref_id"]
                if key in seen:
                    raise InputError(
                        f"{self.source} has sentence {key[0]} of ref {key[1]} twice; download it again"
                    )
                seen[key] = None
                yield Sample(
                    id=f"{subset}, ref {ref['ref_id']}, sentence {sentence['sent_id']}",
                    image=self.image_files.find(image["file_name"]),
                    phrase=str(sentence["sent"]),
                    truth=truth,
                    subset=subset,
                    picture=str(image["file_name"]),
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self.source}, ref {ref.get('ref_id', 'without an id')}: {error!r} is missing or wrong; "
                "its image or annotation is not in instances.json, or the file is damaged; replace it"
            ) from error


def _annotation_ids(ref: Mapping[str, Any]) -> list[int]:
    """Return the ids of a ref's annotations; gRefCOCO has a list, [-1] for no target."""
    ids = ref["ann_id"]
    return [each for each in (ids if isinstance(ids, list) else [ids]) if each != -1]


@dataclass
class ImageFiles:
    """Finds the image files of a data set in several folders."""

    folders: Sequence[Path]
    _found: dict[str, Path] = field(default_factory=dict)

    def find(self, name: str) -> Path:
        """Return the path of an image; a missing one gets its place in the first folder."""
        if name not in self._found:
            plain = Path(name).name  # a name must not lead out of the folders
            paths = [folder / plain for folder in self.folders]
            self._found[name] = next((path for path in paths if path.is_file()), paths[0])
        return self._found[name]


def check_image_files(subset: Subset) -> None:
    """Refuse a subset whose images are not all there.

    Raises:
        InputError: names the first missing image and the number of the others.
    """
    paths = dict.fromkeys(sample.image for sample in subset.samples if isinstance(sample.image, Path))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more images" if len(missing) > 1 else ""
        raise InputError(
            f"{subset.name} needs {missing[0]}{more}; download COCO's train2014 images into that folder, or "
            "name the right root"
        )


def refer_subsets(root: Path) -> Iterator[Subset]:
    """Yield the subsets of every REFER tree at or below `root`.

    Raises:
        InputError: a file that is needed is missing or damaged, or images are missing.
    """
    for folder in (root, *(root / name for name in TITLES)):
        for refs_file in sorted(folder.glob("*refs(*).*")) if folder.is_dir() else ():
            matched = _REFS_FILE.fullmatch(refs_file.name)
            if matched:
                yield from _tree_subsets(root, refs_file, matched["split_by"])


def _tree_subsets(root: Path, refs_file: Path, split_by: str) -> Iterator[Subset]:
    folder = refs_file.parent
    title = TITLES.get(folder.name.lower())
    if title is None:
        raise InputError(
            f"{refs_file} lies in a folder called {folder.name!r}, expected one of: {', '.join(TITLES)}; "
            "rename it"
        )
    instances_file = folder / "instances.json"
    if not instances_file.is_file():
        raise InputError(f"{instances_file} is missing; it comes with {refs_file.name}, download it")
    refs = (load_data_pickle if refs_file.suffix == ".p" else load_data_json)(refs_file)
    instances = load_data_json(instances_file)
    if not isinstance(refs, list) or not all(isinstance(ref, Mapping) for ref in refs):
        raise InputError(f"{refs_file} holds something else than a list of refs; download it again")
    folders = [base / name for base in (folder, root, root.parent) for name in IMAGE_FOLDERS]
    files = ImageFiles(folders=list(dict.fromkeys(each for each in folders if each.is_dir())))
    table = RefTable(
        title=title,
        split_by=split_by,
        source=refs_file,
        refs=refs,
        annotations=by_id(instances, "annotations", instances_file),
        images=by_id(instances, "images", instances_file),
        image_files=files,
    )
    yield from table.subsets()


def by_id(document: Any, key: str, path: Path) -> dict[int, Mapping[str, Any]]:
    """Index a list of COCO objects by their `id`.

    Raises:
        InputError: the list is missing, or an id is missing or appears twice.
    """
    try:
        entries = document[key]
        indexed = {entry["id"]: entry for entry in entries}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} has no sound list {key!r} ({error!r}); download it again") from error
    if len(indexed) != len(entries):
        raise InputError(f"{path} has an id twice in {key!r}; download it again")
    return indexed
