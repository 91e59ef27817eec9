"""`check` refuses what it cannot compare or write, before any work."""

from pathlib import Path

import pytest

from refdiff.data.synthetic import RenderedScenes

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.calibration.feed_files import FeedIndex
from refdiff.cli import main
from refdiff.contracts.bundle import open_bundle
from refdiff.errors import BundleError, InputError
from refdiff.verification import check
from tests.support.checked_bundles import with_golden
from tests.support.damage import copy_of, edit_manifest
from tests.support.small_graphs import BUNDLE


@pytest.mark.parametrize("lacking", ["clip_text/out/vector", "unet/out/eps", "sam_decoder/in/prompts"])
def test_a_golden_record_that_is_missing_is_said_before_anything_is_run(lacking: str, tmp_path: Path) -> None:
    bundle = with_golden(BUNDLE, tmp_path / "bundle", lambda arrays: arrays.pop(lacking))
    graph, lines = lacking.partition("/")[0], list[str]()
    with pytest.raises(BundleError, match=f"the golden record of graph {graph} is missing; export again"):
        check.check(bundle, dataset=None, progress=lines.append)
    assert lines == []


def test_a_sibling_without_a_graph_is_named(fp16: Path, tmp_path: Path) -> None:
    exact = copy_of(BUNDLE, tmp_path / "exact")
    edit_manifest(exact, lambda document: document["graphs"].pop("clip_text"))
    with pytest.raises(BundleError, match="exact has no graph 'clip_text'"):
        check.check(fp16, against=[exact], dataset=None)


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("taken.html", "taken.html exists; choose another place, or allow overwriting"),
        ("folder", "it exists and is no plain file"),
        ("nowhere/page.html", "nowhere is not a folder; make it first"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_any_work(
    report: str, said: str, tmp_path: Path, capsys
) -> None:
    (tmp_path / "taken.html").write_text("mine")
    (tmp_path / "folder").mkdir()
    assert main(["check", "no/such/bundle", "--report", str(tmp_path / report)]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "taken.html").read_text() == "mine"


def test_a_check_that_could_not_run_writes_no_report(tmp_path: Path) -> None:
    assert main(["check", str(tmp_path / "nowhere"), "--report", str(tmp_path / "page.html")]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checked", "against", "said"),
    [
        (
            "fp16",
            ["unrelated"],
            "with other weights or sizes; --against takes bundles that were exported from",
        ),
        ("fp16", ["int8"], "--against takes more exact bundles than the one that is checked"),
        ("fp16", ["fp16"], "--against takes more exact bundles than the one that is checked"),
        ("int8", ["fp16", "twin"], "are both in fp16, expected one bundle for each precision"),
    ],
)
def test_bundles_that_make_no_ladder_end_with_two(
    checked: str, against: list[str], said: str, fp16: Path, int8: Path, tmp_path: Path, capsys
) -> None:
    bundles = {"fp16": fp16, "int8": int8}
    for name, source in (("twin", fp16), ("unrelated", BUNDLE)):
        if name in against:
            bundles[name] = copy_of(source, tmp_path / name)
    if "unrelated" in against:
        edit_manifest(bundles["unrelated"], lambda document: document["sources"].update(unet="0" * 64))
    options = [word for name in against for word in ("--against", str(bundles[name]))]
    assert main(["check", str(bundles[checked]), *options, "--golden-only"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_feeds_need_a_more_exact_bundle(feeds: Path, fp16: Path, tmp_path: Path, capsys) -> None:
    assert main(["check", "mini", "--feeds", str(feeds)]) == 2
    assert capsys.readouterr().err.rstrip().endswith("; leave out --feeds")
    alone = copy_of(fp16, tmp_path / "alone")
    edit_manifest(alone, lambda document: document["sources"].update(unet="0" * 64))
    assert main(["check", str(alone), "--feeds", str(feeds)]) == 2
    said = capsys.readouterr().err
    assert "nothing to compare" in said
    assert "name a more exact bundle (--against), or leave out --feeds" in said


def test_feeds_of_another_model_are_refused(fp16: Path, tmp_path: Path, capsys) -> None:
    sources = dict(open_bundle(BUNDLE, verify="size").manifest.sources)
    folder = tmp_path / "feeds"
    folder.mkdir()
    for model, weights in (("refdiff", sources), ("mini", {**sources, "unet": "0" * 64})):
        index = FeedIndex(model=model, sources=weights, settings={}, planned=0)
        (folder / "feeds.json").write_text(index.to_text())
        assert main(["check", str(fp16), "--feeds", str(folder), "--golden-only"]) == 2
        assert f"holds feeds of {model}" in capsys.readouterr().err
    assert main(["check", str(fp16), "--feeds", str(tmp_path / "none"), "--golden-only"]) == 2
    assert "holds no recorded feeds" in capsys.readouterr().err


def test_check_refuses_no_scenes() -> None:
    with pytest.raises(InputError, match="got count 0"):
        check.check(BUNDLE, dataset=RenderedScenes(count=0))
