"""Fetching checkpoints: from a hub on this machine into a folder, whole and verified, or not at all."""

import ast
import hashlib
import importlib
import importlib.util
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refdiff.cli import main
from refdiff.contracts.progress import silent
from refdiff.errors import InputError, MissingDependencyError
from refdiff.models import fetch
from refdiff.models.hub.download import download_repo, plan_repo
from refdiff.models.hub.folder import default_root, inspect_folder
from refdiff.models.hub.names import HubName, choose_files, entry_of, parse_hub_name
from refdiff.models.hub.record import RECORD, read_record, write_record
from refdiff.models.presets import PRESETS
from tests.support.fake_hub import FakeHub

REPO = "someone/some-sam"
WEIGHTS = bytes(range(256)) * 8000
FILES = {
    "config.json": b'{"model_type": "sam"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"a pickle",
    ".gitattributes": b"",
    "README.md": b"card",
}
NEEDED = ("config.json", "model.safetensors")


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills a cache of the person who runs it, or goes through a proxy."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing answers there


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    library = pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.address)
        yield fake
        library.close_session()


@pytest.fixture
def sam(hub: FakeHub) -> FakeHub:
    """A hub with one SAM."""
    hub.put(REPO, dict(FILES))
    return hub


def put_preset(hub: FakeHub, name: str = "refdiff") -> None:
    for source in PRESETS[name].sources:
        hub.put(
            source.repo,
            {
                file: f"{source.repo} {file}".encode()
                for file in (*source.files, *source.files_of(non_ema=True), "extra.bin")
            },
        )


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    """Files that came here some other way than by a fetch."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def no_network(*_: object, **__: object) -> None:
    pytest.fail("the network was touched")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", HubName(repo="a/b")),
        ("a/b@v1.0", HubName(repo="a/b", revision="v1.0")),
        ("a/b@refs/pr/1", HubName(repo="a/b", revision="refs/pr/1")),
        ("a/b/c.safetensors", HubName(repo="a/b", file="c.safetensors")),
        ("a/b/d/c.ckpt@main", HubName(repo="a/b", file="d/c.ckpt", revision="main")),
    ],
)
def test_a_name_on_the_hub_is_read(text: str, expected: HubName) -> None:
    assert parse_hub_name(text) == expected
    assert expected.text == text


@pytest.mark.parametrize(
    "text", ["a", "/a/b", "./a/b", "../a/b", "a/../b", "a/b/../c", "a\\b", "a/b/", "a/b@../c", "", "~/a/b"]
)
def test_what_is_no_name_on_the_hub_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_hub_name(text)


SD = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "text_encoder/config.json",
    "vae/config.json",
    "unet/config.json",
)
SD_WEIGHTS = (
    "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
)
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SHARDED = {
    "config.json": b"{}",
    INDEX: json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}).encode(),
    SHARDS[0]: WEIGHTS,
    SHARDS[1]: WEIGHTS[::-1],
}


def test_of_a_diffusers_folder_one_set_of_weights_is_chosen_safe_and_full_before_the_rest() -> None:
    stem = "diffusion_pytorch_model"
    names = {
        *SD,
        *(f"vae/{stem}{end}" for end in (".safetensors", ".fp16.safetensors", ".bin")),
        *("text_encoder/pytorch_model.bin", "text_encoder/model.fp16.safetensors"),
        *(f"unet/{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)),
        *(f"unet/{stem}.safetensors.index.json", f"unet/{stem}.fp16.safetensors"),
        *("safety_checker/model.safetensors", "safety_checker/config.json", "v1-5-pruned.safetensors"),
    }
    assert set(choose_files(names, "a/b")) == {
        *SD,
        f"vae/{stem}.safetensors",
        "text_encoder/pytorch_model.bin",  # full precision is worth more than safetensors
        f"unet/{stem}.safetensors.index.json",
        *(f"unet/{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)),
    }


def test_a_diffusers_folder_without_a_part_is_refused() -> None:
    with pytest.raises(InputError, match=r"lacks weights, one of text_encoder/model\.safetensors"):
        choose_files({*SD}, "a/b")


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ({"scheduler/scheduler_config.json"}, r"lacks scheduler/scheduler_config\.json"),
        (
            {"tokenizer/tokenizer_config.json"},
            r"lacks tokenizer/tokenizer_config\.json or tokenizer/special_tokens_map\.json",
        ),
        ({"vae/config.json"}, r"lacks vae/config\.json"),
    ],
)
def test_a_diffusers_repository_without_what_the_loader_reads_is_refused(
    gone: set[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        choose_files({*SD, *SD_WEIGHTS} - gone, "a/b")


def test_one_shard_without_its_index_is_no_checkpoint() -> None:
    with pytest.raises(InputError, match="holds no checkpoint"):
        choose_files({"config.json", SHARDS[0]}, "a/b")


def test_pickles_are_chosen_only_where_there_is_nothing_else() -> None:
    assert choose_files({"config.json", "pytorch_model.bin"}, "a/b") == ("config.json", "pytorch_model.bin")
    assert choose_files(FILES, "a/b") == NEEDED
    assert choose_files({"x.ckpt", "x.safetensors", "sub/y.safetensors"}, "a/b") == ("x.safetensors",)


def test_several_single_checkpoints_need_a_choice() -> None:
    with pytest.raises(InputError, match=r"x\.ckpt, y\.ckpt; name one, as in a/b/x\.ckpt"):
        choose_files({"x.ckpt", "y.ckpt"}, "a/b")
    with pytest.raises(InputError, match="holds no checkpoint"):
        choose_files({"README.md"}, "a/b")


def test_a_lone_checkpoint_is_loaded_as_a_file_and_the_rest_as_a_folder() -> None:
    assert entry_of(Path("d"), ["x.ckpt"]) == Path("d/x.ckpt")
    assert entry_of(Path("d"), ["model.safetensors"]) == Path("d")
    assert entry_of(Path("d"), NEEDED) == Path("d")


def test_a_preset_s_files_are_what_would_be_chosen_of_its_repositories() -> None:
    for preset in PRESETS.values():
        for source in (each for each in preset.sources if each.files):
            assert set(choose_files(source.files, source.repo)) == set(source.files)
            other = source.files_of(non_ema=True)
            assert set(choose_files(other, source.repo, non_ema=True)) == set(other)


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


def test_a_hub_that_ignores_ranges_sends_the_file_from_its_start(sam: FakeHub, tmp_path: Path) -> None:
    sam.cuts, sam.ignores_ranges = [50_000], True
    assert fetch.fetch(REPO, tmp_path).complete
    assert (tmp_path / "someone--some-sam/model.safetensors").read_bytes() == WEIGHTS


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


def test_a_socks_proxy_without_its_package_is_one_line(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("socksio"):
        pytest.skip("the package is installed")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    importlib.import_module("huggingface_hub").close_session()
    report = fetch.fetch(REPO, tmp_path / "to")
    assert "cannot reach the hub" in str(report.problem)
    assert "unset ALL_PROXY" in str(report.problem)
    importlib.import_module("huggingface_hub").close_session()


def test_text_of_the_hub_cannot_command_the_terminal(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.licence = "free\x1b]0;title\x07\x1b[2J\u202e"
    hub.put(REPO, dict(FILES))
    assert main(["fetch", REPO, "--to", str(tmp_path / "to")]) == 0
    out, err = capsys.readouterr()
    assert "free" in out
    assert not {"\x1b", "\x07", "\u202e"} & set(out + err)


NON_EMA = "unet/diffusion_pytorch_model.non_ema.safetensors"
AVERAGED = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(("asked", "expected"), [(None, NON_EMA), ("non-ema", NON_EMA), ("ema", AVERAGED)])
def test_a_preset_s_unet_is_the_paper_s_unless_the_averaged_one_is_asked_for(
    hub: FakeHub, tmp_path: Path, asked: str | None, expected: str
) -> None:
    put_preset(hub)
    report = fetch.fetch("refdiff", tmp_path, diffusion_weights=asked)
    assert report.complete
    unets = [row.name for repo in report.repos for row in repo.files if row.name.startswith("unet/diff")]
    assert unets == [expected]


def test_an_unknown_set_of_weights_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown --diffusion-weights 'EMA'; choose one of: ema, non-ema"):
        fetch.fetch("refdiff", tmp_path, diffusion_weights="EMA", offline=True)


def test_a_repository_without_the_other_set_says_what_to_pass(hub: FakeHub, tmp_path: Path) -> None:
    put_preset(hub)
    repo = PRESETS["refdiff"].diffusion.repo
    hub.put(repo, {file: file.encode() for file in PRESETS["refdiff"].diffusion.files})
    with pytest.raises(InputError, match=r"has no unet/.*non_ema.*, or pass --diffusion-weights ema"):
        fetch.fetch("refdiff", tmp_path)


def test_offline_the_sizes_of_a_preset_are_shown_roughly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "refdiff", "--to", str(tmp_path / "to"), "--offline"]) == 3
    out = capsys.readouterr().out
    assert "about 3.44 GB" in out
    assert "to download: about 7.43 GB" in out


def test_a_file_that_the_preset_needs_and_the_hub_lacks_is_named(hub: FakeHub, tmp_path: Path) -> None:
    put_preset(hub)
    del hub.repos["facebook/sam-vit-huge"][hub.heads["facebook/sam-vit-huge"]]["model.safetensors"]
    with pytest.raises(InputError, match=r"facebook/sam-vit-huge has no model\.safetensors at commit"):
        fetch.fetch("refdiff", tmp_path)
    assert hub.downloads() == []


def test_a_file_that_is_listed_and_not_served_is_named(sam: FakeHub, tmp_path: Path) -> None:
    sam.vanished = {"model.safetensors"}
    with pytest.raises(InputError, match=r"the hub does not have someone/some-sam/model\.safetensors"):
        fetch.fetch(REPO, tmp_path)


def test_an_unknown_repository_and_an_unknown_revision_are_misuse(sam: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the hub knows no model someone/else"):
        fetch.fetch("someone/else", tmp_path)
    with pytest.raises(InputError, match="no such revision"):
        fetch.fetch(REPO, tmp_path, revision="v9")


def test_a_gated_repository_tells_how_to_get_access(
    sam: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sam.gated = {REPO}
    assert main(["fetch", REPO, "--to", str(tmp_path)]) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert "is gated: accept its conditions at" in error
    assert f"{sam.address}/{REPO}, then log in with: hf auth login" in error


def test_a_name_that_leads_out_of_the_folder_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    for name in ("../evil.safetensors", "a/../../evil.safetensors", "/evil.safetensors", "..\\evil.ckpt"):
        hub.put(REPO, {name: b"evil"})
        with pytest.raises(InputError, match="leads outside of it"):
            fetch.fetch(REPO, tmp_path / "to", revision="main")
    assert files_in(tmp_path) == set()


def test_a_dry_run_asks_and_downloads_nothing(sam: FakeHub, tmp_path: Path) -> None:
    report = fetch.fetch(REPO, tmp_path / "to", dry_run=True)
    assert [(row.name, row.state) for row in report.repos[0].files] == [(name, "missing") for name in NEEDED]
    assert report.to_download_bytes == sum(len(FILES[name]) for name in NEEDED)
    assert len(sam.requests) == 1
    assert not (tmp_path / "to").exists()


def test_a_dry_run_that_the_hub_answered_ends_with_0_and_its_help_says_so(
    sam: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fetch", REPO, "--to", str(tmp_path / "to"), "--dry-run"]
    assert main(command) == 0
    assert "missing" in capsys.readouterr().out
    assert main([*command, "--offline"]) == 3
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(command) == 3
    capsys.readouterr()
    assert main(["fetch", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "--dry-run that the hub answered ends with 0" in words


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


def test_offline_touches_no_network_and_says_which_files_belong_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    command = ["fetch", "refdiff-vitb", "--to", str(tmp_path), "--offline", "--json"]
    assert main(command) == 3
    document = json.loads(capsys.readouterr().out)
    listed = {(file["url"], file["path"]) for repo in document["repos"] for file in repo["files"]}
    assert listed == {
        (
            f"https://huggingface.co/{source.repo}/resolve/main/{file}",
            str(tmp_path / source.repo.replace("/", "--") / file),
        )
        for source in PRESETS["refdiff-vitb"].sources
        for file in source.files_of(non_ema=True)
    }
    for _, path in listed:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"put there by hand")
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert {file["state"] for repo in document["repos"] for file in repo["files"]} == {"unverified"}
    assert [repo["licence"] for repo in document["repos"]] == [
        source.licence for source in PRESETS["refdiff-vitb"].sources
    ]


def test_offline_names_the_page_of_a_repository_whose_files_it_cannot_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "someone/else", "--to", str(tmp_path), "--offline"]) == 3
    streams = capsys.readouterr()
    assert "all files of the model" in streams.out
    assert "someone/else/tree/main" in streams.err.splitlines()[-1]


def test_without_a_network_the_files_are_listed_and_the_exit_code_is_3(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["fetch", "refdiff", "--to", str(tmp_path / "to")]) == 3
    streams = capsys.readouterr()
    needed = [file for source in PRESETS["refdiff"].sources for file in source.files_of(non_ema=True)]
    assert all(file in streams.out for file in needed)
    assert "cannot reach the hub at http://127.0.0.1:9" in streams.err.splitlines()[-1]
    assert not (tmp_path / "to").exists()


def test_something_that_answers_and_is_no_hub_is_recognized(sam: FakeHub, tmp_path: Path) -> None:
    sam.heads[REPO] = ""
    sam.repos[REPO][""] = {}
    report = fetch.fetch(REPO, tmp_path)
    assert report.problem is not None
    assert "is it a hub at all?" in report.problem


def test_without_the_hub_s_library_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("download", "client"):
        monkeypatch.delitem(sys.modules, f"refdiff.models.hub.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["fetch", "refdiff", "--to", str(tmp_path)]) == 3
    assert "pip install '.[export]'" in capsys.readouterr().err.splitlines()[-1]


def test_the_verb_prints_one_document_and_keeps_progress_off_stdout(
    sam: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", REPO, "--to", str(tmp_path), "--json"]) == 0
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert document["complete"]
    assert [file["state"] for file in document["repos"][0]["files"]] == ["present"] * 2
    assert f"downloading {REPO}/model.safetensors" in streams.err


def test_the_verb_shows_size_licence_and_hash_before_it_downloads(
    sam: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", REPO, "--to", str(tmp_path)]) == 0
    before, _, _ = capsys.readouterr().err.partition("downloading")
    assert all(
        fact in before
        for fact in ("2.05 MB", "apache-2.0", hashlib.sha256(WEIGHTS).hexdigest()[:16], "missing")
    )


@pytest.mark.parametrize(
    "arguments",
    [["mini"], ["sd"], ["refdiff", "--revision", "main"], ["a/b@x", "--revision", "y"], ["a/../b"]],
)
def test_a_model_that_cannot_be_fetched_is_misuse(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", *arguments, "--to", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def resolve(name: str, **options: Any) -> Path:
    from refdiff.models.hub import download

    return download.resolve(name, **options)


def test_a_path_that_exists_is_itself(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").touch()
    assert resolve(str(tmp_path / "x.ckpt")) == tmp_path / "x.ckpt"
    assert resolve(str(tmp_path)) == tmp_path


def test_a_name_is_downloaded_once_and_then_found(sam: FakeHub, tmp_path: Path) -> None:
    folder = resolve(REPO)
    assert folder == default_root() / "someone--some-sam"
    sam.requests.clear()
    assert resolve(REPO) == folder
    assert resolve(REPO, checkpoints=default_root(), offline=True) == folder
    assert resolve(f"{REPO}@{sam.heads[REPO][:12]}", offline=True) == folder
    assert resolve(f"{REPO}/config.json", offline=True) == folder / "config.json"
    assert sam.requests == []


def test_offline_a_name_that_is_not_here_says_what_to_put_where(sam: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"put config\.json, model\.safetensors from .* into"):
        resolve("facebook/sam-vit-base", checkpoints=tmp_path, offline=True)
    assert sam.requests == []


def test_offline_another_revision_than_the_fetched_one_is_not_taken_for_it(
    sam: FakeHub, tmp_path: Path
) -> None:
    resolve(REPO, checkpoints=tmp_path)
    with pytest.raises(MissingDependencyError):
        resolve(f"{REPO}@{'0' * 40}", checkpoints=tmp_path, offline=True)


def test_the_cache_of_the_hub_s_library_is_looked_into(sam: FakeHub, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    for name in NEEDED:
        hf_hub_download(REPO, name, endpoint=sam.address, cache_dir=tmp_path / "hf-cache")
    sam.requests.clear()
    found = resolve(REPO, offline=True)
    assert found.is_relative_to(tmp_path / "hf-cache")
    assert (found / "model.safetensors").read_bytes() == WEIGHTS
    assert sam.requests == []


def test_an_index_is_complete_with_all_of_its_shards(hub: FakeHub, tmp_path: Path) -> None:
    partial = {name: content for name, content in SHARDED.items() if name != SHARDS[1]}
    folder = fill(tmp_path / "someone--some-sam", partial)
    with pytest.raises(MissingDependencyError, match=rf"put {SHARDS[1]} from"):
        resolve(REPO, checkpoints=tmp_path, offline=True)
    with pytest.raises(MissingDependencyError, match=rf"put {SHARDS[1]} from"):
        resolve(f"{REPO}/{INDEX}", checkpoints=tmp_path, offline=True)
    fill(folder, SHARDED)
    assert resolve(REPO, checkpoints=tmp_path, offline=True) == folder
    assert resolve(f"{REPO}/{INDEX}", checkpoints=tmp_path, offline=True) == folder / INDEX
    assert hub.requests == []


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": 3}}',
        b'{"weight_map": {"a": "../x"}}',
        SHARDED[INDEX][:40],
    ],
)
def test_an_index_that_cannot_be_read_has_to_come_again(hub: FakeHub, tmp_path: Path, index: bytes) -> None:
    fill(tmp_path / "someone--some-sam", {**SHARDED, INDEX: index})
    with pytest.raises(MissingDependencyError, match=rf"put {INDEX} from"):
        resolve(REPO, checkpoints=tmp_path, offline=True)


def test_a_stopped_fetch_of_shards_is_not_loaded_and_goes_on(hub: FakeHub, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        if line.startswith(f"downloading {REPO}/{SHARDS[1]}: 55 %"):
            raise KeyboardInterrupt

    hub.put(REPO, dict(SHARDED))
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(REPO, tmp_path, progress=stop)
    with pytest.raises(MissingDependencyError, match=rf"put {SHARDS[1]} from"):
        resolve(REPO, checkpoints=tmp_path, offline=True)
    hub.requests.clear()
    folder = resolve(REPO, checkpoints=tmp_path)
    assert hub.downloads() == [SHARDS[1]]
    assert files_in(folder) == {*SHARDED, RECORD}


def test_an_index_that_is_asked_for_by_name_brings_its_shards(hub: FakeHub, tmp_path: Path) -> None:
    hub.put(REPO, dict(SHARDED))
    index = resolve(f"{REPO}/{INDEX}", checkpoints=tmp_path)
    assert files_in(index.parent) == {INDEX, *SHARDS, RECORD}


def test_a_part_of_a_model_in_the_cache_of_the_hub_s_library_is_not_loaded(
    hub: FakeHub, tmp_path: Path
) -> None:
    from huggingface_hub import hf_hub_download

    hub.put(REPO, dict(SHARDED))
    for name in ("config.json", INDEX, SHARDS[0]):
        cached = hf_hub_download(REPO, name, endpoint=hub.address, cache_dir=tmp_path / "hf-cache")
        with pytest.raises(MissingDependencyError, match="is not on this machine"):
            resolve(REPO, checkpoints=tmp_path, offline=True)
    hf_hub_download(REPO, SHARDS[1], endpoint=hub.address, cache_dir=tmp_path / "hf-cache")
    assert resolve(REPO, checkpoints=tmp_path, offline=True) == Path(cached).parent


@pytest.mark.parametrize("lost", [*SD[1:], *SD_WEIGHTS])
def test_a_diffusers_folder_that_lacks_what_the_loader_reads_is_not_loaded(
    hub: FakeHub, tmp_path: Path, lost: str
) -> None:
    folder = fill(tmp_path / "a--b", dict.fromkeys((*SD, *SD_WEIGHTS), b"{}"))
    assert resolve("a/b", checkpoints=tmp_path, offline=True) == folder
    (folder / lost).unlink()
    with pytest.raises(MissingDependencyError, match=rf"put {lost} from"):
        resolve("a/b", checkpoints=tmp_path, offline=True)


def test_either_file_of_a_tokenizer_will_do_unless_a_preset_lists_both(hub: FakeHub, tmp_path: Path) -> None:
    either, other = "tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json"
    names = {*SD, *SD_WEIGHTS, either} - {other}
    folder = fill(tmp_path / "a--b", dict.fromkeys(names, b"{}"))
    assert resolve("a/b", checkpoints=tmp_path, offline=True) == folder
    listed = PRESETS["refdiff"].diffusion
    fill(tmp_path / listed.repo.replace("/", "--"), dict.fromkeys(set(listed.files) - {other}, b"{}"))
    with pytest.raises(MissingDependencyError, match=rf"put {other} from"):
        resolve(listed.repo, checkpoints=tmp_path, offline=True)


def test_a_lone_checkpoint_resolves_to_its_file(hub: FakeHub, tmp_path: Path) -> None:
    hub.put("a/b", {"model-v1.safetensors": WEIGHTS, "README.md": b""})
    assert resolve("a/b", checkpoints=tmp_path) == tmp_path / "a--b/model-v1.safetensors"


def test_what_is_neither_a_path_nor_a_name_is_misuse(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a file nor a folder that exists nor a name on the hub"):
        resolve("no-such-file.ckpt")
    with pytest.raises(InputError, match="is not a folder"):
        resolve("a/b", checkpoints=tmp_path / "missing")


def test_planning_needs_no_library_and_fetching_no_torch() -> None:
    code = (
        "import sys\n"
        "import refdiff.models.fetch\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "try:\n"
        "    import refdiff.models.hub.download\n"
        "except ModuleNotFoundError as error:\n"
        "    assert error.name == 'huggingface_hub'\n"
        "assert not {'torch', 'transformers', 'diffusers'} & set(sys.modules)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_a_preset_s_clip_has_the_activation_that_open_clip_gives_its_repository() -> None:
    package = importlib.util.find_spec("open_clip")  # read, not imported: that takes longer than all the rest
    if package is None or package.origin is None:
        pytest.skip("open_clip is not installed: pip install '.[export]'")
    table = ast.parse(Path(package.origin).with_name("pretrained.py").read_text(encoding="utf-8"))
    calls = (node for node in ast.walk(table) if isinstance(node, ast.Call))
    entries = [{word.arg: ast.unparse(word.value) for word in call.keywords} for call in calls]
    for preset in PRESETS.values():
        (theirs,) = [entry for entry in entries if entry.get("hf_hub") == f"'{preset.clip.repo}/'"]
        assert theirs["quick_gelu"] == str(preset.clip.activation == "quick_gelu")
        assert preset.diffusion.activation is preset.sam.activation is None
