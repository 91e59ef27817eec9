"""The verb `fetch`: presets, refusals, what it prints, and what it says without a network."""

import ast
import hashlib
import importlib
import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from refdiff.cli import main
from refdiff.errors import InputError
from refdiff.models import fetch
from refdiff.models.presets import PRESETS
from tests.support.fake_hub import FakeHub
from tests.support.hub_repos import FILES, NEEDED, REPO, WEIGHTS, files_in, put_preset


def no_network(*_: object, **__: object) -> None:
    pytest.fail("the network was touched")


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


@pytest.mark.slow
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
