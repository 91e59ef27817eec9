"""Names that become paths: what is here already, complete and of the revision that is asked for."""

from pathlib import Path

import pytest

from refdiff.errors import InputError, MissingDependencyError
from refdiff.models import fetch
from refdiff.models.hub.folder import RECORD, default_root
from refdiff.models.presets import PRESETS
from tests.support.fake_hub import FakeHub
from tests.support.hub_repos import (
    INDEX,
    NEEDED,
    REPO,
    SD,
    SD_WEIGHTS,
    SHARDED,
    SHARDS,
    WEIGHTS,
    files_in,
    fill,
    resolve,
)


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
