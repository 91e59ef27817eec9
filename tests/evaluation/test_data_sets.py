"""`eval --data`: the digits of a direct computation, resumed runs, the published table, and bad input."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from pycocotools import mask as coco

from refdiff.cli import main
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import RunOptions
from refdiff.contracts.results import Candidates, Scores
from refdiff.data.sample import SampleList, Truth, true_mask
from refdiff.data.synthetic import RenderedScenes
from refdiff.errors import InputError
from refdiff.evaluation.datasets import find_subsets, select
from refdiff.evaluation.evaluate import evaluate, language_cautions
from refdiff.evaluation.published import ODDITIES, published_rows, published_table
from refdiff.evaluation.records import RECORDS_NAME, phrase_classes, records_of
from refdiff.evaluation.summary import summarize
from refdiff.loading import open_backend, segmenter_of
from refdiff.runtime.segmentation import Segmentation
from tests.support.data_sets import write_grefcoco, write_reason_seg, write_refer_tree

GEN = RunOptions(mode="gen")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two data sets on the same pictures, gRefCOCO and ReasonSeg."""
    folder = tmp_path_factory.mktemp("data")
    write_refer_tree(folder, {"val": (3, 4)})
    write_refer_tree(folder, {"val": (3, 4)}, data_set="refcoco+")
    write_grefcoco(folder, (5,))
    write_reason_seg(folder, (6,))
    return folder


@pytest.fixture(scope="module")
def selection(root):
    return select(find_subsets(root), allow_partial=True)


@pytest.fixture(scope="module")
def report(selection, tiny_bundle, tmp_path_factory):
    return evaluate(tiny_bundle, selection, options=GEN, output=tmp_path_factory.mktemp("records") / "run")


def test_metrics_equal_a_direct_computation_with_pycocotools(report, root):
    records = [each for each in report.records if each.subset == "RefCOCO (unc, val)"]
    annotations = {
        each["id"]: each
        for each in json.loads((root / "refcoco" / "instances.json").read_text())["annotations"]
    }
    intersections, unions, ious = 0, 0, []
    for record in records:
        number = int(record.id.split("ref ")[1].split(",")[0])
        answer = coco.decode(record.rle) > 0
        segmentation = annotations[number]["segmentation"]
        if isinstance(segmentation, list):
            truth = coco.decode(coco.frPyObjects(segmentation, *answer.shape)).sum(axis=2) > 0
        else:
            raw = segmentation["counts"]
            encoded = coco.frPyObjects(segmentation, *answer.shape) if isinstance(raw, list) else segmentation
            truth = coco.decode(encoded) > 0
        one, both = np.count_nonzero(answer & truth), np.count_nonzero(answer | truth)
        intersections, unions = intersections + one, unions + both
        ious.append(one / both)
    summary = report.by_subset["RefCOCO (unc, val)"]
    assert summary.count == len(records) == len(ious)
    assert summary.miou == pytest.approx(np.mean(ious), abs=1e-12)
    assert summary.oiou == pytest.approx(intersections / unions, abs=1e-12)
    assert summary.precision_at[0.5] == np.mean([each > 0.5 for each in ious])
    low, high = summary.miou_interval
    assert 0 <= low <= summary.miou <= high <= 1
    parts = summary.lost_to_proposals, summary.lost_to_ranking, summary.lost_to_edges
    assert sum(parts) + summary.miou == pytest.approx(1)
    assert min(parts) >= 0


def test_sentences_of_one_picture_are_answered_together_across_data_sets(selection, report):
    order = [sample.picture for sample in selection.samples]
    assert len(dict.fromkeys(order)) == sum(a != b for a, b in zip(["", *order], order, strict=False))
    assert selection.pictures == 4
    assert set(report.by_subset) == {
        "RefCOCO (unc, val)",
        "RefCOCO+ (unc, val)",
        "gRefCOCO (unc, val)",
        "ReasonSeg (LISA, val)",
    }
    one, two = (report.by_subset[f"RefCOCO{plus} (unc, val)"] for plus in ("", "+"))
    assert one == two


def test_an_interrupted_run_resumes_with_the_same_digits(selection, report, tiny_bundle, tmp_path):
    folder = tmp_path / "run"
    whole = evaluate(tiny_bundle, selection, options=GEN, output=folder)
    lines = (folder / RECORDS_NAME).read_bytes().splitlines(keepends=True)
    (folder / RECORDS_NAME).write_bytes(b"".join(lines[:3]) + lines[3][:40])  # killed in the fourth record
    again = evaluate(tiny_bundle, selection, options=GEN, output=folder)
    assert again.resumed == 3
    assert again.summary == whole.summary == report.summary
    names = [json.loads(line)["id"] for line in (folder / RECORDS_NAME).read_bytes().splitlines()]
    assert sorted(names) == sorted({sample.id for sample in selection.samples})
    with pytest.raises(InputError, match="another options"):
        evaluate(tiny_bundle, selection, options=RunOptions(mode="gen", seed=1), output=folder)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX's limits")
def test_a_disk_that_fills_up_is_one_line_and_the_run_resumes(report, root, tiny_bundle, tmp_path, capsys):
    import resource

    folder, data = tmp_path / "run", ["--data", str(root), "--partial", "--mode", "gen", "--json"]
    command = ["eval", str(tiny_bundle), *data, "--output", str(folder)]
    first = len(json.dumps(report.records[0].to_json()))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * first, before[1]))  # the disk is full within a few records
    try:
        assert main(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["message"].startswith(f"cannot write {folder / RECORDS_NAME}: ")
    written = (folder / RECORDS_NAME).read_bytes()
    assert len(written) == 3 * first
    assert not written.endswith(b"\n")  # as much of the last record as there was room for
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["resumed"] == written.count(b"\n") > 0
    assert document["miou"] == report.summary.miou
    lines = (folder / RECORDS_NAME).read_bytes().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == len(report.records)


GERMAN = ("der rote Becher", "die blaue Tasse links", "das Buch neben der Lampe")


def test_a_data_set_in_another_language_is_one_caution(tiny_bundle, capsys):
    scene = next(iter(RenderedScenes(count=1)))
    samples = tuple(
        dataclasses.replace(scene, id=text, phrase=text, picture="one") for text in (*GERMAN, "the mug")
    )
    (line,) = evaluate(tiny_bundle, SampleList(samples), options=GEN).cautions
    assert line.startswith("language: 3 of 4 phrases do not look English, such as 'der rote Becher'")
    assert language_cautions(["the mug"] * 11 + ["der rote Becher"] * 2) == ()  # some are in any data set
    assert language_cautions([]) == ()


def test_the_verb_prints_the_caution_of_another_language(root, tiny_bundle, tmp_path, capsys):
    shutil.copytree(root, tmp_path / "data")
    path = tmp_path / "data" / "grefcoco" / "grefs(unc).json"
    refs = json.loads(path.read_text())
    for ref in refs:
        for sentence in ref["sentences"]:
            sentence["sent"] = sentence["raw"] = "der rote Becher neben der Tasse"
    path.write_text(json.dumps(refs))
    options = ["--data", str(tmp_path / "data"), "--partial", "--subset", "gRefCOCO", "--mode", "gen"]
    assert main(["eval", str(tiny_bundle), *options]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "language" in line]
    assert len(said) == 1
    assert said[0].startswith("caution: language: ")
    assert main(["eval", str(tiny_bundle), *options, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cautions"][0] == said[0].removeprefix("caution: ")


def test_mode_gen_is_measured_with_its_other_selector_too(selection, report, tiny_bundle):
    bundle = find_bundle(tiny_bundle)
    options = GEN.pipeline_options(bundle.spec)
    assert options.fusion.level_selector == "between-class"
    other = dataclasses.replace(
        options, fusion=dataclasses.replace(options.fusion, level_selector="contrast")
    )
    sample, record = selection.samples[0], report.records[0]
    with segmenter_of(bundle, open_backend(bundle), other) as segmenter:
        (direct,) = records_of([sample], [segmenter.segment(sample.read(), sample.phrase)])
    assert record.other_selector == (direct.intersection_px, direct.union_px)
    assert record.other_selector != (record.intersection_px, record.union_px)
    assert direct.other_selector is None  # the options are not given
    rows = published_rows(report.by_subset, mode="gen", variant="edge", other_selector=report.other_selector)
    (row,) = [each for each in rows if each.mode == "gen" and each.metric == "miou"]
    ious = [
        each.other_selector[0] / each.other_selector[1]
        for each in report.records
        if each.subset == row.subset
    ]
    assert row.other_selector == pytest.approx(100 * np.mean(ious))
    text = published_table(rows).to_html()
    assert "other selector" in text
    assert f"{row.other_selector:.2f}" in text


def test_a_folder_that_is_no_evaluation_is_left_alone(selection, tiny_bundle, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="no folder of an evaluation"):
        evaluate(tiny_bundle, selection, options=GEN, output=tmp_path)
    assert [each.name for each in tmp_path.iterdir() if each.name != ".lock"] == ["photo.png"]


def test_the_published_table_has_24_rows_and_judges_whole_subsets_only(report):
    summaries = {"RefCOCO (unc, val)": report.by_subset["RefCOCO (unc, val)"]}
    rows = published_rows(summaries, mode="full", variant="official")
    assert len(rows) == 24
    assert [row.ours is not None for row in rows].count(True) == 2
    measured = [row for row in rows if row.ours is not None]
    assert all(row.reproduced is not None and row.difference is not None for row in measured)
    partial = published_rows(summaries, mode="full", variant="official", partial={"RefCOCO (unc, val)"})
    assert all(row.reproduced is None for row in partial)


@pytest.mark.parametrize(("published", "reproduced"), [("low", False), ("inside", True), ("high", False)])
def test_a_row_fails_outside_interval_and_tolerance(published, reproduced):
    from refdiff.evaluation.published import PublishedRow

    value = {"low": 28.9, "inside": 29.1, "high": 41.1}[published]
    row = PublishedRow(
        subset="s",
        mode="full",
        metric="miou",
        published=value,
        ours=35.0,
        interval=(30.0, 40.0),
        other_selector=None,
        partial=False,
        variant="official",
    )
    assert row.reproduced is reproduced


def test_an_answer_to_a_sentence_without_a_target_counts_once(report):
    records = [each for each in report.records if each.subset == "gRefCOCO (unc, val)"]
    absent = [each for each in records if not each.has_target]
    summary = report.by_subset["gRefCOCO (unc, val)"]
    assert summary.absent == len(absent) > 0
    answered = [each for each in absent if each.matched]
    assert summary.no_target_accuracy == 1 - len(answered) / len(absent)
    empty = summarize([])
    assert (empty.count, empty.miou, empty.oiou, empty.images) == (0, 0.0, 0.0, 0)


def test_phrase_classes():
    assert phrase_classes("the red mug on the left") == {"place", "attribute", "6-9 words"}
    assert "plural" in phrase_classes("two dogs")
    assert "plural" not in phrase_classes("the glass")
    assert "relation" in phrase_classes("the cup next to the laptop")


def test_the_verb_lists_estimates_and_evaluates(root, tiny_bundle, tmp_path, capsys):
    options = ["--data", str(root), "--subset", "RefCOCO (unc", "--partial", "--mode", "gen", "--json"]
    assert main(["eval", str(tiny_bundle), *options, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["pictures"] == 2
    assert plan["seconds"] > 0
    assert main(["eval", str(tiny_bundle), *options, "--table", "published", "-o", str(tmp_path / "o")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["count"] == plan["sentences"]
    assert len(document["published"]) == 24
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["miou"] == document["miou"]
    assert len(summary["bundle_sha256"]) == 64


def test_the_release_s_oddities_are_switched_on_alone(root, tiny_bundle, capsys):
    options = ["--data", str(root), "--subset", "RefCOCO (unc", "--partial", "--mode", "gen", "--json"]
    assert main(["eval", str(tiny_bundle), *options, "--audit", "release"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert main(["eval", str(tiny_bundle), *options]) == 0
    plain = json.loads(capsys.readouterr().out)
    normal, _, bgr = rows.values()
    assert normal["miou"] == plain["miou"]
    assert bgr["count"] == normal["count"]
    assert normal["miou_weighted_by_area"] != normal["miou"]


def test_the_first_sentence_s_answer_is_given_to_all_sentences_of_an_image(selection):
    samples = [each for each in selection.samples if each.subset == "RefCOCO (unc, val)"]
    samples = [each for each in samples if each.picture == samples[0].picture]
    asked = []

    class FirstOnly:
        def segment(self, pixels, phrase):
            asked.append(phrase)
            return answer_of(true_mask(samples[0]))

    found = ODDITIES["the first sentence's answer for all of an image"](FirstOnly(), None, samples)
    assert asked == [samples[0].phrase]
    assert len(found) == len(samples) > 2
    assert found[0].iou == 1
    assert {json.dumps(each.rle) for each in found} == {json.dumps(found[0].rle)}
    assert found[-1].iou < 1  # of another object


def answer_of(mask):
    """Return an answer whose only candidate is `mask`."""
    one = np.ones(1, np.float32)
    candidates = Candidates(
        masks=mask[None],
        predicted_iou=one,
        areas_px=np.array([mask.sum()]),
        boxes_xyxy_px=np.zeros((1, 4), np.int64),
        kept=np.ones(1, bool),
    )
    scores = Scores(hard=one, soft=one, generative=one, place=one, total=one)
    return Segmentation(
        phrase="x", root="x", mask=mask, index=0, score=1.0, scores=scores, heat=None, candidates=candidates
    )


def test_the_verb_writes_a_page_and_files_that_other_tools_read(root, tiny_bundle, tmp_path, capsys):
    page, results = tmp_path / "page.html", tmp_path / "results.json"
    options = ["--data", str(root), "--subset", "RefCOCO (unc", "--partial", "--mode", "gen"]
    files = ["--html", str(page), "--coco", str(results), "--refer", str(tmp_path)]
    assert main(["eval", str(tiny_bundle), *options, *files]) == 0
    text = page.read_text()
    assert text.count("<article>") >= 2
    assert "Distribution of the IoU" in text
    documents = json.loads(results.read_text())
    assert {"image_id", "category_id", "segmentation", "score"} <= set(documents[0])
    (refs,) = [json.loads((tmp_path / "refs(refdiff).json").read_text())]
    instances = json.loads((tmp_path / "instances.json").read_text())
    assert len(refs) == len(instances["annotations"]) == len(documents)
    for annotation in instances["annotations"]:
        assert annotation["area"] == coco.area(annotation["segmentation"])
        assert annotation["bbox"] == coco.toBbox(annotation["segmentation"]).tolist()
    assert main(["eval", str(tiny_bundle), *options, "--html", str(page)]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "{root}"], "expected 3811"),
        (["--data", "{root}", "--partial", "--subset", "testC"], "no subset is called testC"),
        (["--data", "{root}/nowhere"], "does not exist, expected a REFER tree"),
        (["--data", "{root}", "--partial", "--shard", "3/2"], "shard 3/2"),
        (["--data", "{root}", "--partial", "--shard", "x"], "expected i/n"),
        (["--data", "{empty}"], "no data set that is known"),
        (["--subset", "testA"], "need --data"),
        (["--table", "mine"], "unknown table 'mine'"),
    ],
)
def test_data_that_cannot_be_used_is_one_clear_line(options, said, root, tmp_path, capsys):
    filled = [each.format(root=root, empty=tmp_path) for each in options]
    assert main(["eval", "mini", *filled]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_mask_of_another_size_is_refused(root, tiny_bundle, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(Path(root), folder)
    path = folder / "refcoco" / "instances.json"
    document = json.loads(path.read_text())
    for image in document["images"]:
        image["height"], image["width"] = image["height"] + 1, image["width"] + 1
    for annotation in document["annotations"]:
        annotation["segmentation"] = [[0.0, 0.0, 9.0, 0.0, 9.0, 9.0]]
    path.write_text(json.dumps(document))
    chosen = select(find_subsets(folder), names=["RefCOCO (unc, val)"], allow_partial=True)
    with pytest.raises(InputError, match="the true mask is"):
        evaluate(tiny_bundle, chosen, options=GEN)


def test_a_truth_that_sentences_share_is_decoded_once(mini_bundle):
    class Counted:
        decoded = 0

        def read(self):
            self.decoded += 1
            return Truth(mask=next(iter(RenderedScenes(count=1))).truth)

    scene, truth = next(iter(RenderedScenes(count=1))), Counted()
    samples = [dataclasses.replace(scene, id=str(number), truth=truth, picture="one") for number in range(3)]
    report = evaluate(mini_bundle, SampleList(tuple(samples)), options=GEN)
    assert truth.decoded == 1
    assert len({record.iou for record in report.records}) == 1
