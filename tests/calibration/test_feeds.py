"""The store of recorded feeds, and the sessions that record them."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.calibration.feed_files import ArrayFolder
from refdiff.calibration.feeds import FeedStore, Records, Run
from refdiff.calibration.recording import FeedRecorder, spread_evenly
from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.session import Array
from refdiff.errors import EngineError, InputError

SOURCES = {"sam": "a" * 64, "clip": "b" * 64}
SETTINGS = {"variants": {"edge": {"timesteps": (51,)}}, "backend": "fake"}
LATENT = (np.arange(24, dtype=np.float32) / 4).reshape(1, 2, 3, 4)
IDS = np.arange(5, dtype=np.int32)[None]


def started(folder: Path, planned: int = 2, **changes: object) -> FeedStore:
    given: dict[str, object] = {"model": "tiny", "sources": SOURCES, "settings": SETTINGS, **changes}
    return FeedStore.start(folder, planned=planned, **given)  # type: ignore[arg-type]


def opened(folder: Path) -> FeedStore:
    return FeedStore.open(folder, model="tiny", sources=SOURCES)


def run(graph: str, position: int = 0, **feeds: Array) -> Run:
    return Run(graph=graph, position=position, feeds=feeds)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Two samples; the latent is fed to two graphs and in both."""
    store = started(tmp_path / "feeds")
    store.add(
        "one",
        {"edge": [run("unet", latent=LATENT), run("unet_taps", latent=LATENT + 1), run("sd_text", ids=IDS)]},
    )
    store.add("two", {"edge": [run("unet_taps", latent=LATENT), run("unet_taps", 1, latent=LATENT + 2)]})
    return store.folder


def array_files(folder: Path) -> list[Path]:
    return sorted((folder / "arrays").iterdir())


def test_what_was_stored_comes_back_with_its_type_and_shape(recording: Path) -> None:
    (ids,) = opened(recording).records("sd_text")
    assert ids["ids"].dtype == np.int32
    assert np.array_equal(ids["ids"], IDS)
    latent = opened(recording).records("unet")[0]["latent"]
    assert latent.dtype == np.float32
    assert np.array_equal(latent, LATENT)


@pytest.mark.parametrize(
    "array",
    [
        np.float32([6.0e-8, -0.0, 65504.0, -np.inf, 6.1e-5]).astype(np.float16).astype(np.float32),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.zeros((2, 0, 3), np.float32),
        np.array(7, np.int32),
    ],
    ids=["ends of half precision", "other memory order", "empty", "no axis"],
)
def test_an_array_survives_bit_for_bit(tmp_path: Path, array: Array) -> None:
    arrays = ArrayFolder(tmp_path)
    back = arrays.get(arrays.put(array))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == np.ascontiguousarray(array).tobytes()


def test_memory_order_makes_no_second_array(tmp_path: Path) -> None:
    arrays, array = ArrayFolder(tmp_path), np.arange(6, dtype=np.float32).reshape(2, 3)
    assert arrays.put(array) == arrays.put(np.asfortranarray(array))


def test_equal_arrays_are_on_disk_once(recording: Path) -> None:
    assert len(array_files(recording)) == 4  # latent, latent + 1, latent + 2, ids


def test_a_run_of_unet_taps_is_found_under_unet_too_and_not_the_other_way_round(recording: Path) -> None:
    store = opened(recording)
    shifts = [float((record["latent"] - LATENT).mean()) for record in store.records("unet")]
    assert shifts == [0, 1, 0, 2]
    assert [entry.graph for entry in store.entries("unet")] == ["unet", *["unet_taps"] * 3]
    assert len(store.records("unet_taps")) == 3


def test_an_entry_holds_sample_variant_and_position(recording: Path) -> None:
    entries = opened(recording).entries("unet_taps")
    assert [(entry.sample, entry.variant, entry.position) for entry in entries] == [
        ("one", "edge", 0),
        ("two", "edge", 0),
        ("two", "edge", 1),
    ]


def test_records_are_a_sequence(recording: Path) -> None:
    records = opened(recording).records("unet")
    assert len(records[1:3]) == 2
    assert np.array_equal(records[1:3][0]["latent"], records[1]["latent"])
    assert np.array_equal(records[-1]["latent"], LATENT + 2)
    assert len(opened(recording).records("clip_text")) == 0
    with pytest.raises(IndexError):
        records[4]


def test_arrays_are_read_when_they_are_asked_for(recording: Path) -> None:
    records = opened(recording).records("unet")
    for path in array_files(recording):
        path.unlink()
    with pytest.raises(InputError, match="missing"):
        records[0]


class CountedFolder(ArrayFolder):
    """Keeps the names that are read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read: list[str] = []

    def get(self, name: str) -> Array:
        self.read.append(name)
        return super().get(name)


def test_an_array_that_two_neighbours_share_is_read_once(tmp_path: Path) -> None:
    store = started(tmp_path, planned=1)
    runs = [run("sam_decoder", n, embedding=LATENT, prompts=LATENT + n) for n in range(1, 4)]
    store.add("one", {"edge": runs})
    folder = CountedFolder(tmp_path / "arrays")
    records = Records(opened(tmp_path).entries("sam_decoder"), folder)
    embeddings = [record["embedding"] for record in records]
    assert embeddings[0] is embeddings[1] is embeddings[2]
    assert len(folder.read) == len(set(folder.read)) == 4


def with_other_content(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1] + b"x"))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-12])


@pytest.mark.parametrize(
    "damage", [with_other_content, cut_short, Path.unlink, lambda path: path.write_bytes(b"\0" * 40)]
)
def test_a_damaged_array_is_named_with_the_cure(recording: Path, damage: object) -> None:
    for path in array_files(recording):
        damage(path)  # type: ignore[operator]
    with pytest.raises(InputError, match=r"arrays.*\.npy\.gz .*--overwrite"):
        list(opened(recording).records("unet"))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"format": 2}', '{"format": 1}', "[" * 100_000])
def test_a_damaged_index_is_an_input_error(recording: Path, text: str) -> None:
    (recording / "feeds.json").write_text(text)
    with pytest.raises(InputError, match=r"feeds\.json.*--overwrite"):
        opened(recording)
    with pytest.raises(InputError, match=r"feeds\.json"):
        started(recording)


def test_an_index_cannot_name_files_outside_its_folder(recording: Path) -> None:
    document = json.loads((recording / "feeds.json").read_text())
    document["questions"][0]["runs"][0]["feeds"]["latent"] = "../../secret"
    (recording / "feeds.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="secret"):
        opened(recording)


def test_feeds_of_another_model_are_refused_and_both_are_named(recording: Path) -> None:
    with pytest.raises(InputError, match=r"feeds of tiny, the bundle is large"):
        FeedStore.open(recording, model="large", sources=SOURCES)
    with pytest.raises(InputError, match=r"feeds of tiny, the bundle is large"):
        started(recording, model="large")


def test_feeds_of_other_weights_are_refused_and_the_part_is_named(recording: Path) -> None:
    with pytest.raises(InputError, match=r"tiny with sam aaaaaaaaaaaa, .* tiny with sam cccccccccccc"):
        FeedStore.open(recording, model="tiny", sources={**SOURCES, "sam": "c" * 64})


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"settings": {**SETTINGS, "backend": "other"}}, "backend 'fake', asked for is 'other'"),
        ({"settings": {**SETTINGS, "variants": {"edge": {"timesteps": (1,)}}}}, r"variants\.edge\.timesteps"),
        ({"settings": {**SETTINGS, "variants": {**SETTINGS["variants"], "official": {}}}}, "official"),
        ({"planned": 3}, "planned 2, asked for is 3"),
    ],
)
def test_other_settings_are_refused_by_name_and_not_mixed(
    recording: Path, changes: dict[str, object], key: str
) -> None:
    before = (recording / "feeds.json").read_bytes()
    with pytest.raises(InputError, match=rf"{key}.*--overwrite"):
        started(recording, **changes)  # type: ignore[arg-type]
    assert (recording / "feeds.json").read_bytes() == before


def test_an_unfinished_recording_is_not_read_but_gone_on_with(tmp_path: Path) -> None:
    started(tmp_path).add("one", {"edge": [run("unet", latent=LATENT)]})
    with pytest.raises(InputError, match="1 of 2 samples"):
        opened(tmp_path)
    store = started(tmp_path)
    assert store.finished == ("one",)
    store.add("two", {"edge": []})
    assert opened(tmp_path).finished == ("one", "two")


def test_a_sample_is_recorded_once(recording: Path) -> None:
    with pytest.raises(ValueError, match="recorded already"):
        started(recording).add("one", {})


def test_what_a_killed_recording_left_outside_the_index_is_swept(recording: Path) -> None:
    whole = array_files(recording)
    ArrayFolder(recording / "arrays").put(LATENT * 5)
    for draft in (".feeds.json.0123456789ab.partial", "arrays/.x.npy.gz.0123456789ab.partial"):
        (recording / draft).write_bytes(b"half")
    (recording / "arrays" / "notes.txt").write_text("mine")
    started(recording)
    assert set(array_files(recording)) == {*whole, recording / "arrays" / "notes.txt"}
    assert sorted(path.name for path in recording.iterdir()) == ["arrays", "feeds.json"]


def test_an_index_that_could_not_be_replaced_is_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = started(tmp_path)
    before = (tmp_path / "feeds.json").read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left on device; free space"):
        store.add("one", {"edge": [run("unet", latent=LATENT)]})
    assert (tmp_path / "feeds.json").read_bytes() == before
    assert array_files(tmp_path) == []


def test_overwriting_starts_again_even_from_a_damaged_recording(recording: Path) -> None:
    (recording / "feeds.json").write_text("{")
    store = started(recording, overwrite=True, model="large")
    assert store.finished == ()
    assert array_files(recording) == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("index", [False, True])
def test_a_folder_with_anything_else_in_it_is_left_alone(
    tmp_path: Path, index: bool, overwrite: bool
) -> None:
    if index:
        started(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"photo\.jpg"):
        started(tmp_path, overwrite=overwrite)
    assert (tmp_path / "photo.jpg").read_bytes() == b"mine"


def test_a_file_in_the_way_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        started(tmp_path / "file")
    with pytest.raises(InputError, match="cannot write"):
        started(tmp_path / "file" / "feeds")
    with pytest.raises(InputError, match="no recorded feeds"):
        opened(tmp_path / "file")


def test_the_size_is_what_the_files_take(recording: Path) -> None:
    files = [path for path in recording.rglob("*") if path.is_file()]
    assert opened(recording).size_bytes == sum(path.stat().st_size for path in files)


class FakeSession:
    """Returns what it was fed, and fails on demand."""

    def __init__(self, name: str) -> None:
        self.graph = GraphSpec(name, (), ())
        self.fed: list[Mapping[str, Array]] = []
        self.broken = False

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        if self.broken:
            raise EngineError("broken")
        self.fed.append(feeds)
        return {"out": feeds["x"] * 2}

    def close(self) -> None:
        self.fed.clear()


class FakeSessions:
    def __init__(self) -> None:
        self.sessions: dict[str, FakeSession] = {}
        self.closed = False

    def open(self, name: str) -> FakeSession:
        return self.sessions.setdefault(name, FakeSession(name))

    def close(self) -> None:
        self.closed = True


def test_graphs_are_fed_the_rounded_values_that_are_recorded() -> None:
    inner = FakeSessions()
    recorder = FeedRecorder(inner)
    exact = np.float32([1 / 3])
    rounded = exact.astype(np.float16).astype(np.float32)
    assert rounded != exact
    result = recorder.open("unet").run({"x": exact})
    (kept,) = recorder.take()
    assert kept.feeds["x"] == inner.sessions["unet"].fed[0]["x"] == rounded
    assert result["out"] == rounded * 2


def test_every_run_is_kept_in_order_and_counted_by_graph() -> None:
    recorder = FeedRecorder(FakeSessions())
    for graph in ("unet", "sam", "unet", "unet"):
        recorder.open(graph).run({"x": np.float32([1])})
    taken = [(each.graph, each.position) for each in recorder.take()]
    assert taken == [("unet", 0), ("sam", 0), ("unet", 1), ("unet", 2)]
    assert recorder.take() == ()


def test_runs_beyond_the_bound_are_thinned_evenly_and_keep_their_positions() -> None:
    recorder = FeedRecorder(FakeSessions(), most=4)
    for number in range(16):
        recorder.open("decoder").run({"x": np.float32([number])})
    recorder.open("unet").run({"x": np.float32([0])})
    taken = recorder.take()
    assert [(each.graph, each.position) for each in taken[:-1]] == [("decoder", n) for n in (0, 5, 10, 15)]
    assert [float(each.feeds["x"][0]) for each in taken[:-1]] == [0, 5, 10, 15]
    assert taken[-1].graph == "unet"


def test_an_array_of_several_runs_is_held_once() -> None:
    recorder = FeedRecorder(FakeSessions())
    for _ in range(2):
        recorder.open("decoder").run({"x": np.ones(4, np.float32)})
    first, second = recorder.take()
    assert first.feeds["x"] is second.feeds["x"]


def test_arrays_that_differ_in_shape_or_type_alone_stay_apart() -> None:
    recorder = FeedRecorder(FakeSessions())
    zeros = [np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), np.zeros((2, 3), np.int32)]
    for array in zeros:
        recorder.open("decoder").run({"x": array})
    assert [(each.feeds["x"].shape, each.feeds["x"].dtype) for each in recorder.take()] == [
        (array.shape, array.dtype) for array in zeros
    ]


def test_a_run_that_failed_is_not_recorded() -> None:
    inner = FakeSessions()
    recorder = FeedRecorder(inner)
    session = recorder.open("unet")
    inner.sessions["unet"].broken = True
    with pytest.raises(EngineError):
        session.run({"x": np.float32([1])})
    assert recorder.take() == ()


def test_a_closed_recorder_closes_what_it_wraps_and_forgets() -> None:
    inner = FakeSessions()
    recorder = FeedRecorder(inner)
    recorder.open("unet").run({"x": np.float32([1])})
    recorder.close()
    assert inner.closed
    assert recorder.take() == ()


@given(st.integers(0, 200), st.integers(1, 30))
def test_a_spread_is_no_more_than_asked_and_reaches_both_ends(count: int, most: int) -> None:
    chosen = spread_evenly(count, most)
    assert len(chosen) == min(count, most)
    assert chosen <= set(range(count))
    if min(count, most) > 1:
        assert {0, count - 1} <= chosen
    gaps = np.diff(sorted(chosen))
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_without_a_bound_a_spread_is_everything() -> None:
    assert spread_evenly(7, None) == frozenset(range(7))
