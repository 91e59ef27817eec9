"""Data sets to train on, read as the trainers read them."""

import csv
import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from refdiff.batch.folder_run import FolderRun
from refdiff.batch.result_store import EXPORTS, open_result_store
from refdiff.batch.training_set import FinishedRun, check_exports, export_training_set
from refdiff.batch.work_list import plan_work
from refdiff.cli import main
from refdiff.errors import EngineError, InputError
from tests.support.answers import answer, prediction

cv2 = pytest.importorskip("cv2")

PHRASES = ("the red mug", 'the "odd": <name> & \\ # é', "yes")
EMPTY = "yes"
"""The phrase that has no mask."""
IMAGE_FORMATS = {"bmp", "dng", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp", "pfm", "heic"}


def mask_on(size, phrase):
    """A ring for the first phrase, two boxes for the second, nothing for the third."""
    mask = np.zeros(size, bool)
    if phrase == PHRASES[0]:
        mask[2:12, 3:15] = True
        mask[5:9, 7:11] = False
    elif phrase == PHRASES[1]:
        mask[1:4, 1:4] = True
        mask[12:18, 20:28] = True
    return mask


def predict(image, phrases):
    for phrase in phrases:
        if image.shape[1] == 31:
            raise EngineError("graph unet failed")
        mask = mask_on(image.shape[:2], phrase)
        yield prediction(answer(phrase, mask, image=image), image)


def picture(number, size=(20, 30)):
    return np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)


@pytest.fixture
def images(tmp_path):
    """Names that collide without their suffix, in different folders and in letters of another alphabet."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["a.png", "a.jpg", "sub/a.png", "é b.png"]):
        Image.fromarray(picture(number)).save(folder / name)
    return folder


def export(images, *kinds, phrases=PHRASES, predict=predict):
    out = images.parent / "out"
    plan = plan_work(images, phrases, output=out, recursive=True)
    with open_result_store(out, {"run": "1"}) as store:
        run = FolderRun(store=store, predict=predict, report=lambda line: None)
        return run.complete(plan, title="a test", coco=False, export=kinds)["exports"]


def read_labels(folder, part):
    """Return for each image its size, classes and polygons, checked as ultralytics' loader checks them.

    The rules are those of `verify_image_label`, `img2label_paths` and `segments2boxes` in ultralytics'
    data/utils.py and utils/ops.py.
    """
    found = {}
    for image in sorted((folder / "images" / part).iterdir()):
        assert image.suffix[1:] in IMAGE_FORMATS
        with Image.open(image) as opened:
            opened.verify()
        with Image.open(image) as opened:
            assert opened.format.lower() in IMAGE_FORMATS
            assert opened.getexif().get(274, 1) == 1
            width, height = opened.size
        label = Path(str(image).replace("/images/", "/labels/").rsplit(".", 1)[0] + ".txt")
        rows = [row.split() for row in label.read_text("utf-8").strip().splitlines() if row]
        if rows:
            assert all(len(row) > 6 and len(row) % 2 for row in rows)  # a polygon, not a box
        classes = np.array([row[0] for row in rows], np.float32)
        segments = [np.array(row[1:], np.float32).reshape(-1, 2) for row in rows]
        boxes = [[*points.min(axis=0), *points.max(axis=0)] for points in segments]
        table = np.array([[c, *box] for c, box in zip(classes, boxes, strict=True)]).reshape(-1, 5)
        assert (table[:, 3:] > table[:, 1:3]).all()
        assert table[:, 1:].max(initial=0) <= 1
        assert table.min(initial=0) >= 0
        assert len(np.unique(table, axis=0)) == len(table)
        found[image.name] = ((height, width), classes.astype(int).tolist(), segments)
    return found


def polygon_mask(size, points):
    """Paint a polygon as `polygon2mask` does, at the size of the image."""
    canvas = np.zeros(size, np.uint8)
    cv2.fillPoly(canvas, [(points * (size[1], size[0])).astype(np.int32)], color=1)
    return canvas.astype(bool)


@pytest.mark.slow
def test_yolo_labels_pass_the_loaders_checks_and_paint_the_masks(images):
    yaml = pytest.importorskip("yaml")
    counts = export(images, "yolo-seg")["yolo-seg"]
    folder = images.parent / "out" / "yolo-seg"
    data = yaml.safe_load((folder / "data.yaml").read_text("utf-8"))
    assert data["names"] == dict(enumerate(PHRASES))
    assert {"train", "val"} <= set(data)
    assert "path" not in data  # the loader takes the folder of data.yaml then, wherever it is
    train, val = (read_labels(folder, Path(data[part]).name) for part in ("train", "val"))
    assert train
    assert val
    assert len({Path(name).stem for name in (*train, *val)}) == 4
    for size, classes, segments in (*train.values(), *val.values()):
        assert classes == [0, 1]
        for number, points in zip(classes, segments, strict=True):
            wanted, painted = mask_on(size, PHRASES[number]), polygon_mask(size, points)
            assert painted[wanted].all()
            assert (painted & ~wanted).sum() <= (0 if number == 0 else 20)
    assert (counts.images, counts.annotations, counts.without_mask, counts.left_out) == (4, 8, 4, 0)
    rows = list(csv.DictReader((folder / "sources.csv").read_text("utf-8").splitlines()))
    assert sorted(row["image"] for row in rows) == ["a.jpg", "a.png", "sub/a.png", "é b.png"]
    assert all((folder / row["file"]).is_file() for row in rows)


@pytest.mark.slow
def test_coco_is_read_by_pycocotools_and_its_images_are_there(images, capsys):
    coco_module = pytest.importorskip("pycocotools.coco")
    export(images, "coco")
    folder = images.parent / "out" / "coco"
    coco = coco_module.COCO(str(folder / "annotations.json"))
    capsys.readouterr()  # it prints what it does
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == list(PHRASES)
    loaded = coco.loadImgs(coco.getImgIds())
    assert [each["original_name"] for each in loaded] == ["a.jpg", "a.png", "sub/a.png", "é b.png"]
    for image in loaded:
        with Image.open(folder / "images" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert [each["category_id"] for each in annotations] == [1, 2]
        for each in annotations:
            mask = coco.annToMask(each).astype(bool)
            assert np.array_equal(mask, mask_on(mask.shape, PHRASES[each["category_id"] - 1]))
            rows, columns = np.nonzero(mask)
            x, y, width, height = each["bbox"]
            assert (x, y, x + width, y + height) == (
                columns.min(),
                rows.min(),
                columns.max() + 1,
                rows.max() + 1,
            )
            assert (each["area"], each["iscrowd"]) == (mask.sum(), 0)


@pytest.mark.slow
def test_label_studio_tasks_name_images_that_are_there_and_labels_of_the_interface(images):
    export(images, "label-studio")
    folder = images.parent / "out" / "label-studio"
    root = ElementTree.parse(folder / "label_config.xml").getroot()  # noqa: S314 - written above
    labels = [each.get("value") for each in root.iter("Label")]
    assert labels == list(PHRASES)
    tasks = json.loads((folder / "tasks.json").read_text("utf-8"))
    assert len(tasks) == 4
    for task in tasks:
        assert (folder / task["data"]["image"].partition("?d=")[2]).is_file()
        (prediction,) = task["predictions"]
        assert [region["value"]["brushlabels"] for region in prediction["result"]] == [
            [PHRASES[0]],
            [PHRASES[1]],
        ]


def stored(name, images):
    """The file and pixels that a data set has of an image."""
    folder = images.parent / "out" / "coco"
    document = json.loads((folder / "annotations.json").read_text())
    (entry,) = [each for each in document["images"] if each["original_name"] == name]
    path = folder / "images" / entry["file_name"]
    return path, entry


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_every_loader_reads_the_pixels_that_the_masks_belong_to(tmp_path, suffix):
    """In each of the eight orientations that EXIF knows."""
    folder = tmp_path / "images"
    folder.mkdir()
    names = {orientation: f"{orientation}.{suffix}" for orientation in range(1, 9)}
    for orientation, name in names.items():
        exif = Image.Exif()
        exif[274] = orientation
        lossless = {"lossless": True} if suffix == "webp" else {}
        Image.fromarray(picture(orientation)).save(folder / name, exif=exif, **lossless)
    seen = []

    def remember(image, phrases):
        seen.append(image)
        yield from predict(image, phrases)

    export(folder, "coco", phrases=PHRASES[:1], predict=remember)
    for (orientation, name), ours in zip(names.items(), seen, strict=True):
        path, entry = stored(name, folder)
        with Image.open(path) as opened:
            plain = np.asarray(opened.convert("RGB"))
        assert plain.shape[:2] == (entry["height"], entry["width"]) == ours.shape[:2]
        assert np.array_equal(plain, ours)  # torchvision: Pillow without EXIF
        assert np.array_equal(cv2.imread(str(path))[..., ::-1], plain)  # ultralytics: OpenCV follows EXIF
        assert (path.read_bytes() == (folder / name).read_bytes()) == (orientation == 1)


@pytest.mark.slow
def test_what_trainers_do_not_read_is_written_as_png(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(picture(0)).quantize(16).save(folder / "a.gif")
    clear = np.dstack([picture(1), np.full((20, 30), 100, np.uint8)])
    Image.fromarray(clear).save(folder / "b.png")
    export(folder, "coco")
    for name in ("a.gif", "b.png"):
        path, _ = stored(name, folder)
        with Image.open(path) as opened:
            assert (opened.format, opened.mode) == ("PNG", "RGB")


@pytest.mark.slow
def test_an_image_with_a_phrase_that_failed_is_left_out_and_counted(images):
    Image.fromarray(picture(9, (20, 31))).save(images / "bad.png")
    for kind, counts in export(images, *EXPORTS).items():
        assert (counts.images, counts.left_out) == (4, 1), kind
    document = json.loads((images.parent / "out" / "coco" / "annotations.json").read_text())
    assert "bad.png" not in {each["original_name"] for each in document["images"]}


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.slow
def test_a_resumed_run_writes_the_same_data_sets_and_a_run_without_them_removes_them(images):
    out = images.parent / "out"
    export(images, *EXPORTS)
    first = {kind: contents(out / kind) for kind in EXPORTS}
    export(images, *EXPORTS)
    assert {kind: contents(out / kind) for kind in EXPORTS} == first
    export(images, "coco")
    assert [kind for kind in EXPORTS if (out / kind).exists()] == ["coco"]
    assert not [path for path in out.iterdir() if path.name.startswith(".") and path.name != ".lock"]


@pytest.mark.slow
def test_a_failed_export_leaves_no_part_of_a_data_set(images):
    export(images)
    out = images.parent / "out"
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]
    work = {
        each.name: dataclasses.replace(
            each, sha256=next(x["image_sha256"] for x in lines if x["image"] == each.name)
        )
        for each in plan_work(images, PHRASES, output=out, recursive=True).items
    }
    run = FinishedRun(folder=out, lines=lines, work=work)
    (images / "é b.png").write_bytes((images / "a.png").read_bytes())
    with pytest.raises(InputError, match=r"é b\.png was changed during the run"):
        export_training_set("coco", run)
    (out / lines[0]["files"]["mask"]).write_bytes(b"other")
    with pytest.raises(InputError, match="was changed during the run"):
        export_training_set("label-studio", run)
    assert not [path for path in out.iterdir() if path.name.lstrip(".").startswith(EXPORTS)]


@pytest.mark.slow
def test_copies_of_an_image_are_on_one_side_of_the_split(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(picture(number % 6)).save(folder / f"{number:02}.png")
    export(folder, "yolo-seg", phrases=PHRASES[:1])
    out = folder.parent / "out" / "yolo-seg"
    sides = [{path.read_bytes() for path in (out / "images" / part).iterdir()} for part in ("train", "val")]
    assert not sides[0] & sides[1]
    assert min(map(len, sides)) >= 1


def test_one_image_is_used_for_both_sides_and_the_file_says_so(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(picture(0)).save(folder / "a.png")
    export(folder, "yolo-seg")
    text = (folder.parent / "out" / "yolo-seg" / "data.yaml").read_text()
    assert "val: images/train" in text
    assert text.startswith("# ")


def test_kinds_are_checked_before_any_work(tmp_path):
    check_exports(EXPORTS, tmp_path)
    with pytest.raises(InputError, match=r"'voc', expected one of coco, yolo-seg, label-studio"):
        check_exports(("voc",), tmp_path)
    with pytest.raises(InputError, match="no output folder"):
        check_exports(("coco",), None)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["a.png", "the mug", "--export", "coco"], "--export is for an output folder; leave it out"),
        ([".", "the mug", "--export", "coco"], "--export is for an output folder; name one"),
        ([".", "the mug", "--export", "voc", "-o", "out"], "got the data set 'voc'"),
        (["a.png", "--box", "0,0,3,3", "--export", "coco"], "got --export with --box or --point"),
    ],
)
def test_the_command_refuses_data_sets_that_it_could_not_write(
    tmp_path, monkeypatch, capsys, arguments, complaint
):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(0)).save("a.png")
    assert main(["segment", "mini", *arguments]) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.slow
def test_the_command_writes_data_sets_and_counts_what_is_in_them(images, tmp_path, capsys):
    out = tmp_path / "answers"
    kinds = [part for kind in EXPORTS for part in ("--export", kind.upper())]
    given = ["-o", str(out), "--json", "--threads", "1"]
    assert main(["segment", "mini", str(images), "the mug", *kinds, *given]) == 0
    exports = json.loads(capsys.readouterr().out)["exports"]
    assert list(exports) == list(EXPORTS)
    for kind, counts in exports.items():
        assert counts["folder"] == str(out / kind)
        assert (counts["images"], counts["annotations"] + counts["without_mask"]) == (3, 3)
