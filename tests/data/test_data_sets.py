"""Readers of published data sets: masks equal to a direct computation, and one clear line for damage."""

import json
import pickle

import numpy as np
import pytest

pytest.importorskip("pycocotools")
pytest.importorskip("pyarrow")
pytest.importorskip("cv2")

from PIL import Image
from pycocotools import mask as coco

from refdiff.data.labelled import coco_subset, csv_subset, drop_wrong_captions, folder_subset, reason_subsets
from refdiff.data.parquet import parquet_subsets
from refdiff.data.refer import PUBLISHED_REFS, check_image_files, load_data_pickle, refer_subsets
from refdiff.data.sample import read_truth, true_mask
from refdiff.data.truth import decode_segmentation
from refdiff.errors import InputError
from refdiff.miniature.scenes import render_scene
from tests.support.data_sets import (
    python2_pickle,
    write_benchmark_table,
    write_grefcoco,
    write_reason_seg,
    write_ref_table,
    write_refer_tree,
)

SEEDS = (3, 4, 8)


def direct_mask(annotation, size_yx):
    """Decode an annotation as the REFER tool does: merge all polygons, or expand the run lengths."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        parts = coco.decode(coco.frPyObjects(segmentation, *size_yx))
        return parts.sum(axis=2) > 0
    if isinstance(segmentation["counts"], list):
        segmentation = coco.frPyObjects(segmentation, *size_yx)
    return coco.decode(segmentation) > 0


def test_a_refer_tree_becomes_one_subset_for_each_split(tmp_path):
    instances, refs = write_refer_tree(tmp_path, {"val": SEEDS, "testA": (11,), "train": (12,)})
    val, test_a = refer_subsets(tmp_path)
    assert (val.name, test_a.name) == ("RefCOCO (unc, val)", "RefCOCO (unc, testA)")
    expected = [ref for ref in refs if ref["split"] == "val"]
    assert val.refs == len(expected)
    assert val.published_refs == PUBLISHED_REFS["RefCOCO (unc, val)"] == 3811
    assert [each.phrase for each in val.samples] == [
        sentence["sent"] for ref in expected for sentence in ref["sentences"]
    ]
    check_image_files(val)
    annotations = {each["id"]: each for each in instances["annotations"]}
    images = {each["id"]: each for each in instances["images"]}
    for ref, sample in zip(expected, val.samples[::2], strict=True):
        size_yx = images[ref["image_id"]]["height"], images[ref["image_id"]]["width"]
        assert np.array_equal(true_mask(sample), direct_mask(annotations[ref["ann_id"]], size_yx))
        assert np.array_equal(sample.read(), render_scene(ref["image_id"]).image)


def test_grefcoco_joins_annotations_and_has_sentences_without_a_target(tmp_path):
    instances, refs = write_grefcoco(tmp_path, SEEDS)
    (subset,) = refer_subsets(tmp_path)
    assert subset.name == "gRefCOCO (unc, val)"
    annotations = {each["id"]: each for each in instances["annotations"]}
    for ref, sample in zip(refs, subset.samples[::2], strict=True):
        mask = true_mask(sample)
        expected = np.zeros_like(mask)
        for number in ref["ann_id"]:
            if number != -1:
                expected |= direct_mask(annotations[number], mask.shape)
        assert np.array_equal(mask, expected)
        assert mask.any() != ref["no_target"]


@pytest.mark.slow
def test_both_forms_of_the_hub_s_tables_hold_the_same_masks(tmp_path):
    write_benchmark_table(tmp_path / "a" / "refcoco_unc_val-00000-of-00001.parquet", SEEDS)
    write_ref_table(tmp_path / "b", SEEDS)
    write_refer_tree(tmp_path / "c", {"val": SEEDS})
    (embedded,) = parquet_subsets(tmp_path / "a")
    (by_ref,) = parquet_subsets(tmp_path / "b")
    (tree,) = refer_subsets(tmp_path / "c")
    assert (embedded.name, by_ref.name) == ("RefCOCO (unc, val)", "RefCOCO+ (unc, val)")
    assert embedded.refs == by_ref.refs == tree.refs
    for one, two, three in zip(
        *(sorted(each.samples, key=lambda s: s.id.split(")")[1]) for each in (embedded, by_ref, tree)),
        strict=True,
    ):
        assert one.phrase == two.phrase == three.phrase
        assert np.array_equal(one.read(), two.read())
        assert np.array_equal(true_mask(two), true_mask(three))


def test_reason_seg_is_painted_largest_first_and_ignored_pixels_are_kept_apart(tmp_path):
    write_reason_seg(tmp_path, SEEDS)
    (subset,) = reason_subsets(tmp_path)
    assert subset.name == "ReasonSeg (LISA, val)"
    assert {sample.phrase for sample in subset.samples} == {"the thing\u2019s one would drink from"}
    for sample in subset.samples:
        truth = read_truth(sample)
        scene = render_scene(int(sample.id.split(", ")[-1]))
        assert truth.ignored is not None
        assert not (truth.mask & truth.ignored).any()
        overlap = np.count_nonzero(truth.mask & scene.masks[0]) / np.count_nonzero(
            truth.mask | scene.masks[0]
        )
        assert overlap > 0.7


def test_a_csv_file_a_coco_file_and_a_folder_of_masks_are_read(tmp_path):
    scene = render_scene(3)
    for folder in ("images", "masks/a"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(scene.image).save(tmp_path / "images" / "a.png")
    Image.fromarray(scene.masks[0]).save(tmp_path / "masks" / "a" / "the-red-mug.png")
    csv_file = tmp_path / "mine.csv"
    csv_file.write_text(
        "image,phrase,mask\nimages/a.png,the red mug,masks/a/the-red-mug.png\nimages/a.png,the dragon,\n"
    )
    found, absent = csv_subset(csv_file).samples
    assert np.array_equal(true_mask(found), scene.masks[0])
    assert true_mask(absent).shape == scene.masks[0].shape
    assert not true_mask(absent).any()
    (from_folder,) = folder_subset(tmp_path).samples
    assert from_folder.phrase == "the red mug"
    assert np.array_equal(true_mask(from_folder), scene.masks[0])
    height, width = scene.masks[0].shape
    rle = coco.encode(np.asfortranarray(scene.masks[0].astype(np.uint8)))
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": height, "width": width}],
        "annotations": [
            {
                "id": 5,
                "image_id": 1,
                "caption": "a mug",
                "segmentation": {**rle, "counts": rle["counts"].decode()},
            }
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))
    (from_coco,) = coco_subset(tmp_path / "coco.json").samples
    assert from_coco.phrase == "a mug"
    assert np.array_equal(true_mask(from_coco), scene.masks[0])
    assert np.array_equal(from_coco.read(), scene.image)


def test_the_review_drops_the_sentences_it_marks(tmp_path):
    _, refs = write_refer_tree(tmp_path, {"val": SEEDS})
    (subset,) = refer_subsets(tmp_path)
    wrong = refs[0]["sentences"][1]["sent"]
    image = f"COCO_train2014_{refs[0]['image_id']:012d}.jpg"
    entries = [
        {"file_name": image, "caption": wrong.upper(), "caption_quality": 0},
        {"file_name": image, "caption": refs[0]["sentences"][0]["sent"], "caption_quality": 1},
    ]
    review = tmp_path / "refcoco_val_reviewed.json"
    review.write_text(json.dumps({"annotations": entries}))
    (kept,) = drop_wrong_captions([subset], [review])
    assert kept.name == "RefCOCO (unc, val, reviewed)"
    assert len(kept.samples) == len(subset.samples) - 1
    assert wrong not in [
        each.phrase for each in kept.samples if each.id.endswith(str(refs[0]["sent_ids"][1]))
    ]
    review.write_text(json.dumps({"annotations": [{**entries[0], "caption": "nothing like it"}]}))
    with pytest.raises(InputError, match="no sentence of"):
        drop_wrong_captions([subset], [review])


class _Harmful:
    def __reduce__(self):
        return (open, ("made-by-a-pickle", "w"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps([_Harmful()]), "it asks for"),
        (python2_pickle([{"ref_id": 1}])[:-3], "no sound pickle"),
        (b"", "no sound pickle"),
        (b"\x80\x02}q\x00", "no sound pickle"),
        (b"not a pickle at all", "no sound pickle"),
    ],
)
def test_a_pickle_runs_no_code_and_damage_is_one_line(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        load_data_pickle(path)
    assert not (tmp_path / "made-by-a-pickle").exists()


def _tree(tmp_path, change):
    instances, refs = write_refer_tree(tmp_path, {"val": (3,)})
    change(instances, refs)
    (tmp_path / "refcoco" / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(python2_pickle(refs))
    for subset in refer_subsets(tmp_path):
        check_image_files(subset)
        for sample in subset.samples:
            true_mask(sample)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda instances, _: instances["annotations"].clear(), "is missing or wrong"),
        (lambda instances, _: instances["images"].clear(), "is missing or wrong"),
        (lambda instances, _: instances.pop("annotations"), "no sound list 'annotations'"),
        (lambda instances, _: instances["annotations"].append(instances["annotations"][0]), "an id twice"),
        (lambda _, refs: refs.append(refs[0]), "twice"),
        (lambda _, refs: refs[0].pop("sentences"), "'sentences'"),
        (lambda _, refs: refs.insert(0, "text"), "something else than a list of refs"),
        (lambda instances, _: instances["images"][0].update(height=7), "the image|cannot be decoded"),
        (lambda instances, _: instances["images"][0].update(file_name="gone.jpg"), "gone.jpg"),
        (
            lambda instances, _: [
                each.update(segmentation=[[1.0, 2.0]]) for each in instances["annotations"]
            ],
            "no polygon with an area",
        ),
        (
            lambda instances, _: [each.update(segmentation="x") for each in instances["annotations"]],
            "no polygon|cannot be decoded",
        ),
    ],
)
def test_a_damaged_tree_is_one_clear_line(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        _tree(tmp_path, change)


def test_missing_files_are_named(tmp_path):
    write_refer_tree(tmp_path, {"val": (3,)})
    (tmp_path / "refcoco" / "instances.json").unlink()
    with pytest.raises(InputError, match=r"instances\.json is missing"):
        list(refer_subsets(tmp_path))


@pytest.mark.slow
def test_a_truncated_table_and_a_table_without_masks_are_refused(tmp_path):
    path = tmp_path / "refcoco_unc_val-00000-of-00001.parquet"
    write_benchmark_table(path, (3,))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="no sound parquet table"):
        list(parquet_subsets(tmp_path))
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"question": ["the mug"], "segmentation": [[1.0, 2.0]]}), path)
    with pytest.raises(InputError, match="keep one polygon and mix splits"):
        list(parquet_subsets(tmp_path))


def test_run_lengths_of_another_size_are_refused():
    with pytest.raises(InputError, match="the mask is"):
        decode_segmentation({"size": [2, 2], "counts": [4]}, (3, 3))
