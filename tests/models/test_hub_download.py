"""Downloads from a hub on this machine: whole and verified, or not at all."""

import hashlib
import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from refdiff.cli import main
from refdiff.contracts.progress import silent
from refdiff.errors import InputError, MissingDependencyError
from refdiff.models import fetch
from refdiff.models.hub.download import download_repo, plan_repo
from refdiff.models.hub.folder import RECORD, inspect_folder, read_record, write_record
from refdiff.models.hub.names import HubName, parse_hub_name
from refdiff.models.presets import PRESETS
from tests.support.fake_hub import FakeHub
from tests.support.hub_repos import FILES, NEEDED, REPO, WEIGHTS, files_in, put_preset, resolve


def test_a_preset_is_fetched_whole_and_without_a_file_too_many(hub: FakeHub, tmp_path: Path) -> None:
    put_preset(hub)
    report = fetch.fetch("refdiff", tmp_path)
    assert report.complete
    for source in PRESETS["refdiff"].sources:
        folder = tmp_path / source.repo.replace("/", "--")
        wanted = source.files_of(non_ema=True)
        assert files_in(folder) == {*wanted, RECORD}
        assert all((folder / file).read_text() == f"{source.repo} {file}" for file in wanted)


def test_the_record_states_commit_licence_sizes_and_hashes(sam: FakeHub, tmp_path: Path) -> None:
    fetch.fetch(REPO, tmp_path)
    record = read_record(tmp_path / "someone--some-sam")
    assert record is not None
    assert (record.repo, record.commit, record.licence) == (REPO, sam.heads[REPO], "apache-2.0")
    assert {name: (file.size_bytes, file.sha256) for name, file in record.files.items()} == {
        name: (len(FILES[name]), hashlib.sha256(FILES[name]).hexdigest()) for name in NEEDED
    }


def test_a_second_fetch_makes_no_request(sam: FakeHub, tmp_path: Path) -> None:
    fetch.fetch(REPO, tmp_path)
    sam.requests.clear()
    assert fetch.fetch(REPO, tmp_path).complete
    assert sam.requests == []


def test_files_that_were_copied_without_their_record_are_verified_and_not_downloaded(
    sam: FakeHub, tmp_path: Path
) -> None:
    fetch.fetch(REPO, tmp_path)
    (tmp_path / "someone--some-sam" / RECORD).unlink()
    sam.requests.clear()
    assert fetch.fetch(REPO, tmp_path).complete
    assert sam.downloads() == []
    assert read_record(tmp_path / "someone--some-sam") is not None


def test_what_another_process_fetched_since_the_plan_was_made_is_kept(sam: FakeHub, tmp_path: Path) -> None:
    plan = plan_repo(parse_hub_name(REPO), tmp_path, silent)
    fetch.fetch(REPO, tmp_path)
    folder, downloads = tmp_path / "someone--some-sam", sam.downloads()
    assert download_repo(plan, silent).complete
    assert files_in(folder) == {*NEEDED, RECORD}  # none was taken for the user's own and kept aside
    assert sam.downloads() == downloads


@pytest.mark.slow
def test_a_download_that_is_cut_off_goes_on_where_it_stopped(sam: FakeHub, tmp_path: Path) -> None:
    sam.cuts = [50_000]
    assert fetch.fetch(REPO, tmp_path).complete
    first, second = sam.ranges("model.safetensors")
    assert (first, second) == (None, "bytes=50000-")
    assert (tmp_path / "someone--some-sam/model.safetensors").read_bytes() == WEIGHTS


def test_a_stopped_fetch_leaves_no_record_and_the_next_one_continues_it(sam: FakeHub, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        if line.startswith(f"downloading {REPO}/model.safetensors: 55 %"):
            raise KeyboardInterrupt

    folder = tmp_path / "someone--some-sam"
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(REPO, tmp_path, progress=stop)
    assert read_record(folder) is None
    assert not (folder / "model.safetensors").exists()
    sam.requests.clear()
    assert fetch.fetch(REPO, tmp_path).complete
    (asked,) = sam.ranges("model.safetensors")
    assert asked is not None
    assert int(asked.removeprefix("bytes=").removesuffix("-")) > 50_000
    assert files_in(folder) == {*NEEDED, RECORD}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.slow
def test_a_hub_that_ignores_ranges_sends_the_file_from_its_start(sam: FakeHub, tmp_path: Path) -> None:
    sam.cuts, sam.ignores_ranges = [50_000], True
    assert fetch.fetch(REPO, tmp_path).complete
    assert (tmp_path / "someone--some-sam/model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.slow
def test_a_connection_that_ends_before_the_first_byte_is_tried_again(sam: FakeHub, tmp_path: Path) -> None:
    sam.cuts = [0]
    assert fetch.fetch(REPO, tmp_path).complete
    assert sam.ranges("model.safetensors") == [None, None]


@pytest.mark.parametrize("name", NEEDED)
def test_content_that_has_not_the_announced_hash_is_deleted(sam: FakeHub, tmp_path: Path, name: str) -> None:
    sam.lies = {name: FILES[name][:-1] + b"!"}
    with pytest.raises(InputError, match="and was deleted"):
        fetch.fetch(REPO, tmp_path)
    folder = tmp_path / "someone--some-sam"
    assert name not in files_in(folder)
    assert read_record(folder) is None
    sam.lies = {}
    assert fetch.fetch(REPO, tmp_path).complete


@pytest.mark.parametrize("name", NEEDED)
def test_a_download_longer_than_announced_is_stopped_and_deleted(
    sam: FakeHub, tmp_path: Path, name: str
) -> None:
    sam.lies[name] = FILES[name] + b"more"
    with pytest.raises(InputError, match=rf"sends more than the {len(FILES[name])} bytes"):
        fetch.fetch(REPO, tmp_path / "to")
    assert not list(tmp_path.rglob("*.partial"))


class Drip:
    """An answer that sends a byte at a time."""

    def iter_raw(self) -> Iterator[bytes]:
        while True:
            yield b"x"


def test_a_server_that_sends_next_to_nothing_is_given_up() -> None:
    pytest.importorskip("huggingface_hub")
    from refdiff.models.hub.transfer import read_chunks

    seconds = itertools.count(0, 14)
    chunks = read_chunks(Drip(), title="a/b", clock=lambda: float(next(seconds)))
    with pytest.raises(MissingDependencyError, match=r"a/b: the hub sent 5 bytes in 70 s, expected at least"):
        for _ in chunks:
            pass


def test_a_call_that_does_not_return_is_left() -> None:
    pytest.importorskip("huggingface_hub")
    from refdiff.models.hub.client import call_within

    forever = threading.Event()
    with pytest.raises(MissingDependencyError, match=r"takes more than 0 s to answer"):
        call_within(0.05, forever.wait)
    forever.set()
    with pytest.raises(ZeroDivisionError):
        call_within(5, lambda: 1 / 0)
    assert call_within(5, lambda: 3) == 3


def test_what_a_person_had_in_the_place_of_a_file_is_kept(sam: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "someone--some-sam"
    folder.mkdir()
    (folder / "config.json").write_text("mine")
    assert fetch.fetch(REPO, tmp_path).complete
    assert (folder / "config.json").read_bytes() == FILES["config.json"]
    assert (folder / "config.json.old-1").read_text() == "mine"


def test_a_newer_revision_replaces_only_what_changed(sam: FakeHub, tmp_path: Path) -> None:
    fetch.fetch(REPO, tmp_path)
    commit = sam.put(REPO, {**FILES, "config.json": b"{}"})
    sam.requests.clear()
    assert fetch.fetch(REPO, tmp_path).repos[0].commit != commit  # not unless it is asked for
    assert fetch.fetch(REPO, tmp_path, revision="main").repos[0].commit == commit
    assert sam.downloads() == ["config.json"]
    assert files_in(tmp_path / "someone--some-sam") == {*NEEDED, RECORD}


def test_one_file_of_a_repository_is_fetched_alone_and_added_to_the_record(
    sam: FakeHub, tmp_path: Path
) -> None:
    fetch.fetch(f"{REPO}/config.json", tmp_path)
    assert sam.downloads() == ["config.json"]
    fetch.fetch(f"{REPO}/pytorch_model.bin@{sam.heads[REPO]}", tmp_path)
    record = read_record(tmp_path / "someone--some-sam")
    assert record is not None
    assert set(record.files) == {"config.json", "pytorch_model.bin"}


def test_a_disk_that_is_too_small_is_said_before_the_download(
    sam: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100_000))
    with pytest.raises(InputError, match="free space or choose another folder"):
        fetch.fetch(REPO, tmp_path)
    assert sam.downloads() == []


def test_a_second_process_does_not_write_into_the_first_one_s_download(sam: FakeHub, tmp_path: Path) -> None:
    seen: list[str] = []

    def fetch_again(line: str) -> None:
        if line.startswith(f"downloading {REPO}/model") and not seen:
            seen.append(line)
            with pytest.raises(InputError, match="another process is fetching"):
                fetch.fetch(REPO, tmp_path)

    assert fetch.fetch(REPO, tmp_path, progress=fetch_again).complete
    assert seen


def test_a_change_that_keeps_the_size_is_noticed_offline_and_undone_online(
    sam: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch.fetch(REPO, tmp_path)
    weights = tmp_path / "someone--some-sam/model.safetensors"
    changed = WEIGHTS[:-1] + b"!"
    weights.write_bytes(changed)
    os.utime(weights, ns=(1, 1))
    sam.requests.clear()
    assert main(["fetch", REPO, "--to", str(tmp_path), "--offline"]) == 3
    assert "put model.safetensors from" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(MissingDependencyError, match=r"put model\.safetensors from"):
        resolve(REPO, checkpoints=tmp_path, offline=True)
    assert sam.requests == []
    assert fetch.fetch(REPO, tmp_path).complete
    assert sam.downloads() == ["model.safetensors"]
    assert weights.read_bytes() == WEIGHTS
    assert weights.with_name("model.safetensors.old-1").read_bytes() == changed


@pytest.mark.parametrize("writable", [True, False])
def test_a_file_that_was_only_touched_is_hashed_once_and_not_downloaded(
    sam: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, writable: bool
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    fetch.fetch(REPO, tmp_path)
    os.utime(tmp_path / "someone--some-sam/model.safetensors", ns=(1, 1))
    sam.requests.clear()
    if not writable:
        monkeypatch.setattr(Path, "replace", refused)
    lines: list[str] = []
    for _ in range(2):
        report = fetch.fetch(REPO, tmp_path, offline=True, progress=lines.append)
        assert [row.state for row in report.repos[0].files] == ["present"] * 2
    assert len(lines) == (1 if writable else 2)
    assert all("model.safetensors, which was touched since it was fetched" in line for line in lines)
    assert sam.requests == []


def test_a_record_without_times_has_its_files_hashed_and_then_has_them(sam: FakeHub, tmp_path: Path) -> None:
    fetch.fetch(REPO, tmp_path)
    folder = tmp_path / "someone--some-sam"
    record = read_record(folder)
    assert record is not None
    timeless = {name: replace(file, mtime_ns=0) for name, file in record.files.items()}
    write_record(folder, replace(record, files=timeless))
    assert inspect_folder(folder, HubName(repo=REPO)).verified
    assert read_record(folder) == record


def test_the_hub_learns_nothing_of_this_machine_but_the_two_versions(sam: FakeHub, tmp_path: Path) -> None:
    fetch.fetch(REPO, tmp_path)
    agents = {headers["user-agent"] for _, _, headers in sam.requests}
    assert all(agent.startswith("refdiff/") and "torch" not in agent for agent in agents)
    assert all("agent" not in path for _, path, _ in sam.requests)
