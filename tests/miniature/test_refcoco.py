"""The RefCOCO folder: complete or absent, and true to the scenes it was rendered from."""

import json

import numpy as np
import pytest
from PIL import Image

from refdiff.errors import InputError
from refdiff.miniature.scenes import LEXICON, render_scene
from refdiff.miniature.scenes.refcoco import encode_rle, write_refcoco
from refdiff.miniature.scenes.shapes import KINDS

SEEDS = (4, 11, 2)


def decode(rle):
    height, width = rle["size"]
    values = np.arange(len(rle["counts"])) % 2 == 1
    return np.repeat(values, rle["counts"]).reshape((height, width), order="F")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layout") / "deep" / "refcoco"
    write_refcoco(folder, iter(SEEDS))
    instances = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
    refs = json.loads((folder / "refs.json").read_text(encoding="utf-8"))
    return folder, instances, refs


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((3, 5), np.bool_),
        np.ones((3, 5), np.bool_),
        np.array([[True, False], [False, True], [True, True]]),
        np.random.default_rng(0).random((7, 4)) < 0.5,
    ],
)
def test_run_lengths_survive_the_round_trip(mask):
    rle = encode_rle(mask)
    assert rle["size"] == list(mask.shape)
    assert sum(rle["counts"]) == mask.size
    assert np.array_equal(decode(rle), mask)


def test_run_lengths_go_down_the_columns_and_begin_with_the_empty_run():
    assert encode_rle(np.array([[True, False], [True, False], [False, False]]))["counts"] == [0, 2, 4]


def test_pictures_are_stored_without_loss(written):
    folder, instances, _ = written
    assert [entry["file_name"] for entry in instances["images"]] == [f"{seed:08d}.png" for seed in SEEDS]
    for entry, seed in zip(instances["images"], SEEDS, strict=True):
        with Image.open(folder / "images" / entry["file_name"]) as picture:
            assert picture.size == (entry["width"], entry["height"])
            assert np.array_equal(np.asarray(picture), render_scene(seed).image)


def test_annotations_describe_the_objects(written):
    _, instances, _ = written
    names = {category["id"]: category["name"] for category in instances["categories"]}
    assert tuple(names.values()) == KINDS
    for image, seed in zip(instances["images"], SEEDS, strict=True):
        scene = render_scene(seed)
        mine = [entry for entry in instances["annotations"] if entry["image_id"] == image["id"]]
        assert len(mine) == len(scene.objects)
        for entry, item, mask in zip(mine, scene.objects, scene.masks, strict=True):
            assert names[entry["category_id"]] == item.kind
            assert np.array_equal(decode(entry["segmentation"]), mask)
            assert entry["area"] == item.area_px
            x, y, w, h = entry["bbox"]
            assert (x, y, x + w, y + h) == item.box_xyxy


def test_refs_point_at_annotations_and_every_id_is_unique(written):
    _, instances, refs = written
    annotations = {entry["id"]: entry for entry in instances["annotations"]}
    assert len(annotations) == len(instances["annotations"])
    assert len({ref["ref_id"] for ref in refs}) == len(refs) == len({ref["ann_id"] for ref in refs})
    sentences = [sentence for ref in refs for sentence in ref["sentences"]]
    assert len({sentence["sent_id"] for sentence in sentences}) == len(sentences)
    for ref in refs:
        target = annotations[ref["ann_id"]]
        assert (ref["image_id"], ref["category_id"]) == (target["image_id"], target["category_id"])
        assert ref["split"] == "val"
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        assert 1 <= len(ref["sentences"]) <= 3


def test_sentences_carry_their_tokens(written):
    for ref in written[2]:
        for sentence in ref["sentences"]:
            assert sentence["raw"] == sentence["sent"] == " ".join(sentence["tokens"])
            assert set(sentence["tokens"]) <= set(LEXICON)


def test_the_same_seeds_write_the_same_bytes(written, tmp_path):
    write_refcoco(tmp_path / "again", SEEDS)
    for name in ("instances.json", "refs.json"):
        assert (tmp_path / "again" / name).read_bytes() == (written[0] / name).read_bytes()


def test_nothing_but_the_folder_is_left_behind(written):
    assert [path.name for path in written[0].parent.iterdir()] == ["refcoco"]
    assert {path.name for path in written[0].iterdir()} == {"images", "instances.json", "refs.json"}


def test_the_split_is_the_callers(tmp_path):
    write_refcoco(tmp_path / "set", [1], split="testA")
    assert {ref["split"] for ref in json.loads((tmp_path / "set" / "refs.json").read_text())} == {"testA"}


def test_an_empty_folder_is_used(tmp_path):
    write_refcoco(tmp_path, [1])
    assert (tmp_path / "refs.json").is_file()


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        write_refcoco(tmp_path, [1])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "set").write_text("keep")
    with pytest.raises(InputError, match="is a file"):
        write_refcoco(tmp_path / "set", [1])


@pytest.mark.parametrize("seeds", [[], [-1], [3, 3]])
def test_seeds_that_cannot_be_used_are_refused(tmp_path, seeds):
    with pytest.raises(InputError, match="seeds"):
        write_refcoco(tmp_path / "set", seeds)
    assert not list(tmp_path.iterdir())


def test_a_run_that_dies_leaves_no_half_written_folder(tmp_path, monkeypatch):
    def die(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", die)
    with pytest.raises(KeyboardInterrupt):
        write_refcoco(tmp_path / "set", [1, 2])
    assert not list(tmp_path.iterdir())


def test_the_command_writes_scenes_and_refuses_a_full_folder(tmp_path, capsys):
    from refdiff.miniature.scenes.__main__ import main

    assert main([str(tmp_path / "out"), "--count", "2", "--seed", "7"]) == 0
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2
    assert main([str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
