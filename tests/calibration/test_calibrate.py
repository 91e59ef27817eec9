"""`calibrate`: what is asked, what is recorded, and how it is refused, stopped and gone on with."""

import csv
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refdiff.calibration import calibrate
from refdiff.cli import main
from refdiff.contracts.graphs import GRAPHS
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import BackendOptions, RunOptions, options_for
from refdiff.contracts.session import half_rounded
from refdiff.data.synthetic import CALIBRATION_FROM, HELD_OUT_FROM, scene_sample
from refdiff.engines.factory import open_sessions
from refdiff.errors import InputError
from refdiff.miniature.scenes import render_scene
from refdiff.runtime.resize import diffusion_input, sam_input
from tests.support.damage import copy_of, edit_manifest

onnxruntime = pytest.importorskip("onnxruntime")


ONE_THREAD = BackendOptions(threads=1)
IN_EDGE: dict[str, Any] = {"count": 2, "backend": ONE_THREAD, "variants": ["edge"]}


def record(bundle, *, images=None, phrases=None, count=None, seed=None, variants=None, mode="full", **given):
    names = ("official", "edge") if variants is None else variants
    given["options"] = [RunOptions(variant=name, mode=mode) for name in names]
    return calibrate.calibrate(bundle, calibrate.calibration_dataset(images, phrases, count, seed), **given)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, calibrate.CalibrationReport]:
    """Two scenes under both variants; read it, do not change it."""
    folder = tmp_path_factory.mktemp("recorded") / "feeds"
    return folder, record("mini", output=folder, count=2, backend=ONE_THREAD)


@pytest.fixture(scope="module")
def recorded_in_edge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, calibrate.CalibrationReport]:
    """Two scenes under one variant; read it, do not change it."""
    folder = tmp_path_factory.mktemp("edge") / "feeds"
    return folder, record("mini", output=folder, **IN_EDGE)


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, Path]:
    """Two pictures, the second of them with two phrases."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, seed in (("b.png", 300_001), ("a.png", 300_002)):
        Image.fromarray(render_scene(seed).image).save(folder / name)
    return folder, phrases(tmp_path, ("b.png", "the mug"), ("a.png", "left ball"), ("a.png", "a book, red"))


def phrases(folder: Path, *rows: Sequence[str], header: Sequence[str] = ("image", "phrase")) -> Path:
    path = folder / "phrases.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_scenes_that_would_reach_the_held_out_ones_are_refused(tmp_path: Path) -> None:
    for seed in (HELD_OUT_FROM, HELD_OUT_FROM - 1):
        with pytest.raises(InputError, match="are for judging"):
            record("mini", output=tmp_path / "feeds", count=2, seed=seed)


def test_every_graph_is_recorded_as_the_profiles_run_it(
    recorded: tuple[Path, calibrate.CalibrationReport],
) -> None:
    folder, report = recorded
    store = calibrate.open_feeds(folder, find_bundle("mini"))
    assert (report.new, report.resumed, report.pictures, report.warnings) == (2, 0, 2, ())
    assert all(report.graphs[name] == len(store.records(name)) > 0 for name in GRAPHS)
    official, edge = (
        [
            (entry.graph, *(record["latent"].shape[0], *record["timestep"]))
            for entry, record in zip(store.entries("unet"), store.records("unet"), strict=True)
            if entry.variant == variant and entry.sample == f"scene {CALIBRATION_FROM}"
        ]
        for variant in ("official", "edge")
    )
    # METHOD §4: the branches of the first pass one by one, then both at once; `edge` has one of one branch.
    assert official == [("unet", 1, 51), ("unet", 1, 51), ("unet_taps", 2, 1, 1)]
    assert edge == [("unet_taps", 1, 51)]


def test_pictures_reach_their_encoders_rounded_and_are_stored_once(
    recorded: tuple[Path, calibrate.CalibrationReport],
) -> None:
    store, sample = calibrate.open_feeds(recorded[0], find_bundle("mini")), scene_sample(CALIBRATION_FROM)
    assert sample is not None
    spec = find_bundle("mini").spec
    pixels, _ = sam_input(sample.read(), spec.sam)
    assert np.array_equal(store.records("sam_encoder")[0]["image"], half_rounded(pixels))
    latent = diffusion_input(sample.read(), spec.diffusion.image_size)
    assert np.array_equal(store.records("vae_encoder")[0]["image"], half_rounded(latent))
    of_one = [entry for entry in store.entries("sam_encoder") if entry.sample == f"scene {CALIBRATION_FROM}"]
    assert [entry.variant for entry in of_one] == ["official", "edge"]
    assert len({entry.arrays["image"] for entry in of_one}) == 1


def test_what_is_recorded_is_what_follows_from_what_is_recorded(
    recorded: tuple[Path, calibrate.CalibrationReport],
) -> None:
    bundle = find_bundle("mini")
    store, sessions = calibrate.open_feeds(recorded[0], bundle), open_sessions(bundle, threads=1)
    embedding = sessions.open("sam_encoder").run(store.records("sam_encoder")[0])["embedding"]
    sessions.close()
    assert np.array_equal(store.records("sam_decoder")[0]["embedding"], half_rounded(embedding))


def test_all_recorded_feeds_run(recorded: tuple[Path, calibrate.CalibrationReport]) -> None:
    bundle = find_bundle("mini")
    store, sessions = calibrate.open_feeds(recorded[0], bundle), open_sessions(bundle, threads=1)
    for name in GRAPHS:
        results = sessions.open(name).run(store.records(name)[-1])
        assert all(np.isfinite(values).all() for values in results.values())
    sessions.close()


@pytest.mark.slow
def test_of_the_decoder_s_runs_some_are_kept_evenly_spread(tmp_path: Path) -> None:
    given = {"count": 1, "backend": ONE_THREAD, "variants": ["official"], "mode": "gen+seg"}
    every = record("mini", output=tmp_path / "all", most_runs=None, **given)
    one = record("mini", output=tmp_path / "one", most_runs=1, **given)
    assert every.graphs["sam_decoder"] > one.graphs["sam_decoder"] == 1
    middle = calibrate.open_feeds(tmp_path / "one", find_bundle("mini")).entries("sam_decoder")[0].position
    assert middle == every.graphs["sam_decoder"] // 2
    assert every.graphs["clip_image"] == 0  # the mode does not look there


def stop_at_sample_two(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def progress(line: str) -> None:
        if line.startswith("sample 2/"):
            raise KeyboardInterrupt

    return progress


def stop_while_the_second_is_written(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    replace = Path.replace

    def progress(line: str) -> None:
        if line.startswith("sample 2/"):
            left = itertools.count(5, -1)

            def interrupted(self: Path, target: Path) -> Path:
                if not next(left):
                    raise KeyboardInterrupt
                return replace(self, target)

            monkeypatch.setattr(Path, "replace", interrupted)

    return progress


def stop_in_the_middle_of_the_second(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def progress(line: str) -> None:
        if line.startswith("sample 2/"):
            interrupt_runs(monkeypatch, after=3)

    return progress


def interrupt_runs(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Interrupt ONNX Runtime after some more runs."""
    run, left = onnxruntime.InferenceSession.run, itertools.count(after, -1)

    def interrupted(self: object, *given: object) -> object:
        if not next(left):
            raise KeyboardInterrupt
        return run(self, *given)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", interrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop", [stop_at_sample_two, stop_while_the_second_is_written, stop_in_the_middle_of_the_second]
)
def test_a_stopped_recording_goes_on_to_the_same_bytes(
    recorded_in_edge: tuple[Path, calibrate.CalibrationReport],
    tmp_path: Path,
    stop: Callable[[pytest.MonkeyPatch], Callable[[str], None]],
) -> None:
    output = tmp_path / "feeds"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        record("mini", output=output, **IN_EDGE, progress=stop(patch))
    with pytest.raises(InputError, match="1 of 2 samples"):
        calibrate.open_feeds(output, find_bundle("mini"))
    report = record("mini", output=output, **IN_EDGE)
    assert (report.new, report.resumed) == (1, 1)
    assert files_of(output) == files_of(recorded_in_edge[0])
    assert report.graphs == recorded_in_edge[1].graphs


def test_a_finished_recording_is_found_finished(
    recorded: tuple[Path, calibrate.CalibrationReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_runs(monkeypatch, after=0)
    report = record("mini", output=recorded[0], count=2, backend=ONE_THREAD)
    assert (report.new, report.resumed) == (0, 2)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"count": 4}, "questions.count 2"),
        ({"seed": 7}, "questions.seed"),
        ({"variants": ["edge"]}, "variants.official {…}, asked for is None"),
        ({"mode": "gen"}, "variants.edge.mode"),
        ({"most_runs": 2}, "most_runs 4"),
    ],
)
def test_other_settings_do_not_mix_into_a_recording(
    recorded: tuple[Path, calibrate.CalibrationReport], changes: dict[str, object], key: str
) -> None:
    before = files_of(recorded[0])
    with pytest.raises(InputError, match=rf"recorded with .*{key}"):
        record("mini", output=recorded[0], **{"count": 2, "backend": ONE_THREAD, **changes})
    assert files_of(recorded[0]) == before


def test_feeds_of_other_weights_are_refused(
    recorded: tuple[Path, calibrate.CalibrationReport], tmp_path: Path
) -> None:
    other = copy_of(find_bundle("mini").path, tmp_path / "other")
    edit_manifest(other, lambda document: document["sources"].update(sam="0" * 64))
    with pytest.raises(InputError, match=r"holds feeds of mini with sam .* mini with sam 000000000000"):
        calibrate.open_feeds(recorded[0], find_bundle(other))
    with pytest.raises(InputError, match="holds feeds of mini with sam"):
        record(other, output=recorded[0], count=2)


def test_a_converted_bundle_is_sent_back_to_its_fp32_one(tmp_path: Path) -> None:
    half = copy_of(find_bundle("mini").path, tmp_path / "half")
    edit_manifest(half, lambda document: document.update(precision="fp16"))
    with pytest.raises(InputError, match="is in fp16, expected fp32"):
        record(half, output=tmp_path / "feeds")
    assert not (tmp_path / "feeds").exists()


@pytest.mark.slow
def test_random_weights_are_recorded_with_a_warning(tmp_path: Path) -> None:
    drawn = copy_of(find_bundle("mini").path, tmp_path / "drawn")
    edit_manifest(drawn, lambda document: document.update(random_seed=3))
    report = record(drawn, output=tmp_path / "feeds", count=2, variants=["edge"], mode="gen")
    assert [warning for warning in report.warnings if "random" in warning]
    assert report.to_json()["warnings"] == list(report.warnings)


@pytest.mark.slow
def test_own_pictures_are_asked_in_the_order_of_the_phrases(table: tuple[Path, Path], tmp_path: Path) -> None:
    folder, rows = table
    lines: list[str] = []
    report = record(
        "mini",
        output=tmp_path / "feeds",
        images=folder,
        phrases=rows,
        variants=["edge"],
        progress=lines.append,
    )
    assert [line.partition(": ")[2] for line in lines if ": " in line] == [
        "the mug",
        "left ball",
        "a book, red",
    ]
    assert (report.new, report.pictures, report.warnings) == (3, 2, ())
    store = calibrate.open_feeds(tmp_path / "feeds", find_bundle("mini"))
    spec = find_bundle("mini").spec
    with Image.open(folder / "a.png") as picture:
        pixels, _ = sam_input(np.asarray(picture), spec.sam)
    assert np.array_equal(store.records("sam_encoder")[1]["image"], half_rounded(pixels))
    assert options_for(spec, variant="edge").seed == store.settings["variants"]["edge"]["seed"]


def test_a_damaged_picture_is_named_before_anything_is_recorded(
    table: tuple[Path, Path], recorded: tuple[Path, calibrate.CalibrationReport], tmp_path: Path
) -> None:
    folder, rows = table
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "b.png").write_bytes(b"")
    before = files_of(recorded[0])
    with pytest.raises(InputError, match=r"b\.png: got no data.*cannot be read either: a\.png"):
        record("mini", output=recorded[0], images=folder, phrases=rows, overwrite=True)
    assert files_of(recorded[0]) == before


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("a.png", "x"), ("b.png", "y"), ("c.png", "z")], r"names c\.png, not in"),
        (
            [("a.png", "x"), ("b.png", "x"), *((f"{n}.png", "z") for n in range(5))],
            r"names 0\.png, 1\.png, 2\.png and 2 more, not in",
        ),
        ([("a.png", "x"), ("b.png", "x"), ("../phrases.csv", "x")], r"names \.\./phrases\.csv, not in"),
        ([("a.png", "the mug")], r"^b\.png in .* has no phrase"),
        ([("a.png", "x"), ("b.png", "")], r"line 3 has no phrase"),
        ([("a.png", "x"), ("", "y")], r"line 3 has no image"),
        ([("a.png", "x"), ("b.png", "the mug", "red")], r"line 3 has 3 fields, expected 2"),
        ([("a.png", "x"), ("b.png",)], r"line 3 has 1 fields"),
        ([], r"holds no phrase"),
        ([("a.png", "x"), ("b.png", "! ?")], r"line 3: b\.png: "),
        ([("a.png", "x"), ("b.png", "mug " * 100)], r"line 3: b\.png: .*tokens"),
    ],
)
def test_phrases_that_do_not_fit_are_refused_by_name(
    table: tuple[Path, Path], tmp_path: Path, rows: Sequence[Sequence[str]], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        record("mini", output=tmp_path / "feeds", images=table[0], phrases=phrases(tmp_path, *rows))
    assert not (tmp_path / "feeds").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": "x"}, "--images without --phrases"),
        ({"phrases": "x"}, "--phrases without --images"),
        ({"images": "x", "phrases": "x", "seed": 1}, "--seed 1 with --images"),
        ({"count": 0}, "count 0"),
        ({"seed": -1}, "seed -1"),
        ({"variants": []}, "no variant"),
        ({"variants": ["paper"]}, "paper"),
        ({"variants": ["best"]}, "unknown variant"),
        ({"mode": "half"}, "unknown mode"),
        ({"backend": BackendOptions(name="abacus")}, "unknown back-end"),
        ({"most_runs": 0}, "at most 0 runs"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        record("mini", output=tmp_path / "feeds", **{"count": 1, **options})
    assert not (tmp_path / "feeds").exists()


@pytest.mark.slow
def test_the_command_says_what_it_recorded_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["calibrate", "mini", "--count", "1", "--variant", "edge", "--mode", "gen"]
    assert main([*command, "--json"]) == 0
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert document["feeds"] == "mini-feeds"
    assert (tmp_path / "mini-feeds" / "feeds.json").is_file()
    assert document["graphs"]["unet"] == document["graphs"]["unet_taps"] == 1
    assert document["graphs"]["sam_encoder"] == 0
    assert "warning: one image only" in streams.err
    assert document["size_bytes"] == sum(len(data) for data in files_of(tmp_path / "mini-feeds").values())
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "1 of them recorded earlier" in said
    assert all(name in said for name in GRAPHS)
    assert main([*command, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new"] == 1


def test_the_command_refuses_a_folder_that_is_not_a_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["calibrate", "mini", "--count", "1", "-o", str(tmp_path), "--overwrite"]) == 2
    assert "mine.txt" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"
