"""Checkpoint files: every format is read without copies or code, every bad one is refused in one line."""

import collections
import errno
import hashlib
import json
import os
import re
import struct
import sys
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.torch import save_file

from refdiff.errors import InputError
from refdiff.models.checkpoint import Checkpoint, read_checkpoint
from refdiff.models.fitting import fit_module
from tests.support.toy_module import Toy, toy_tensors


def save_old(document: Any, file: Path) -> None:
    torch.save(document, file, _use_new_zipfile_serialization=False)


def save_script(tensors: dict[str, Any], file: Path, module: Any = None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates writing these
        module = module or Toy()
        module.load_state_dict(tensors, strict=False)
        torch.jit.script(module).save(str(file))


SAVERS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "zip.pth": torch.save,
    "old.ckpt": save_old,
    "plain.safetensors": save_file,
    "script.pt": save_script,
    "wrong_suffix.txt": save_file,
    "state_dict.ckpt": lambda tensors, file: torch.save({"state_dict": tensors, "epoch": 1}, file),
    "model.pt": lambda tensors, file: torch.save({"model": tensors}, file),
    "module.pt": lambda tensors, file: save_old({"state_dict": {"module": tensors}}, file),
}


def assert_same_tensors(checkpoint: Checkpoint, tensors: dict[str, Any]) -> None:
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.tensors[name].dtype == tensor.dtype, name
        assert torch.equal(checkpoint.tensors[name], tensor), name


# --- what is read


@pytest.mark.parametrize("name", list(SAVERS))
def test_a_format_is_recognized_by_its_content_and_read_to_the_last_bit(tmp_path: Path, name: str) -> None:
    file, tensors = tmp_path / name, toy_tensors()
    SAVERS[name](tensors, file)
    checkpoint = read_checkpoint(file)
    if name == "script.pt":  # TorchScript forgets which buffers were not to be saved
        tensors["kept"] = Toy().kept
    assert_same_tensors(checkpoint, tensors)
    assert checkpoint.files == (file,)
    assert checkpoint.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_half_precision_stays_half_until_it_is_fitted(tmp_path: Path) -> None:
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in toy_tensors().items()}
    save_file(tensors, tmp_path / "half.safetensors")
    checkpoint = read_checkpoint(tmp_path / "half.safetensors")
    assert_same_tensors(checkpoint, tensors)
    module = fit_module(Toy, checkpoint.tensors, file=checkpoint.path)
    assert module.linear.weight.dtype == torch.float32
    assert torch.equal(module.linear.weight, tensors["linear.weight"].float())


@pytest.mark.parametrize("save", [torch.save, save_old])
def test_a_trainers_class_next_to_the_weights_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Any, Path], None]
) -> None:
    # Written as Stable Diffusion's first files were: the callback's class is a key of a dictionary.
    path = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(path)
    callback = type("ModelCheckpoint", (), {"__module__": path})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, path, module)
        document = {"callbacks": {callback: {"best_model_path": "x"}}, "state_dict": toy_tensors()}
        save(document, tmp_path / "sd.ckpt")
    assert_same_tensors(read_checkpoint(tmp_path / "sd.ckpt"), toy_tensors())


def test_what_is_no_tensor_is_left_out(tmp_path: Path) -> None:
    torch.save(toy_tensors() | {"epoch": 3, 5: torch.ones(1), "note": "x"}, tmp_path / "more.pth")
    assert_same_tensors(read_checkpoint(tmp_path / "more.pth"), toy_tensors())


@pytest.mark.parametrize("save", [torch.save, save_file], ids=["zip", "safetensors"])
def test_weights_stay_in_the_file_until_they_are_touched(
    tmp_path: Path, save: Callable[[dict[str, Any], Path], None]
) -> None:
    file = tmp_path / "weights"
    save({"linear.weight": torch.randn(4, 3)}, file)
    tensor = read_checkpoint(file).tensors["linear.weight"]
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux's list of mappings")
    mapped = [
        line.split()[0].split("-") for line in maps.read_text().splitlines() if line.endswith(str(file))
    ]
    assert any(int(low, 16) <= tensor.data_ptr() < int(high, 16) for low, high in mapped)


# --- shards


def write_shards(folder: Path) -> Path:
    """Two shards and their index."""
    tensors = toy_tensors()
    half = len(tensors) // 2
    shards = {
        "a.safetensors": dict(list(tensors.items())[:half]),
        "b.safetensors": dict(list(tensors.items())[half:]),
    }
    for name, part in shards.items():
        save_file(part, folder / name)
    names = {key: name for name, part in shards.items() for key in part}
    return write_index(folder, names)


def write_index(folder: Path, names: Any) -> Path:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")
    return index


def test_shards_are_read_as_one_checkpoint(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_shards(tmp_path))
    assert_same_tensors(checkpoint, toy_tensors())
    assert checkpoint.files == (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in checkpoint.files]
    assert checkpoint.sha256 == hashlib.sha256("".join(hashes).encode()).hexdigest()


def test_shards_may_be_links_as_in_the_hubs_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write_shards(tmp_path / "blobs")
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    index = tmp_path / "snapshot" / "model.safetensors.index.json"
    assert_same_tensors(read_checkpoint(index), toy_tensors())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"index\.json names the shard b\.safetensors, which is not there"):
        read_checkpoint(index)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    names = json.loads(index.read_text())["weight_map"]
    write_index(tmp_path, names | {"lost.weight": "a.safetensors"})
    with pytest.raises(InputError, match=r"names lost\.weight, which a\.safetensors does not hold"):
        read_checkpoint(index)


def test_a_tensor_that_the_index_does_not_name_is_named(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    names = json.loads(index.read_text())["weight_map"]
    del names["drawn"]
    write_index(tmp_path, names)
    with pytest.raises(InputError, match=r"does not name drawn, which one of its shards holds"):
        read_checkpoint(index)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "sub/a.safetensors", "/etc/passwd", "..", "", "..\\x", 3, ["a"]]
)
def test_a_shard_outside_the_folder_is_refused_unread(tmp_path: Path, name: object) -> None:
    (tmp_path / "in").mkdir()
    save_file(toy_tensors(), tmp_path / "outside.safetensors")
    with pytest.raises(InputError, match=r"puts drawn into .*, expected the name of a file next to it"):
        read_checkpoint(write_index(tmp_path / "in", {"drawn": name}))


def test_an_index_that_names_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index\.json is no checkpoint"):
        read_checkpoint(write_index(tmp_path, {"drawn": "model.safetensors.index.json"}))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": [1, 2]}', "\x00", "[" * 100_000]
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(str(index)) + ".*(expected|JSON|nested)") as caught:
        read_checkpoint(index)
    assert "\n" not in str(caught.value)


def test_an_index_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no tensors"):
        read_checkpoint(write_index(tmp_path, {}))


# --- what is refused


def refusal(file: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_checkpoint(file)
    text = str(caught.value)
    assert str(file) in text
    assert "\n" not in text
    return text


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "does not exist; name a file" in refusal(tmp_path / "none.pth")


def test_a_folder_in_place_of_a_file_is_called_one(tmp_path: Path) -> None:
    assert "is a folder, expected a file" in refusal(tmp_path)


def test_a_path_that_no_disk_can_hold_is_refused(tmp_path: Path) -> None:
    assert "File name too long" in refusal(tmp_path / ("x" * 300))


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_opened_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    file = tmp_path / "weights.pth"
    torch.save(toy_tensors(), file)

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(reason, os.strerror(reason), str(path))

    monkeypatch.setattr(os, "open", refuse)  # permissions would not stop a test that runs as root
    text = refusal(file)
    assert os.strerror(reason) in text
    assert "damaged" not in text


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"\x80", b"a text\n", b"<!doctype html>", b"version https://git-lfs.github.com/spec/v1"],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    assert re.search("is no checkpoint|damaged", refusal(tmp_path / "file.pth"))


@pytest.mark.parametrize("name", ["zip.pth", "old.ckpt", "plain.safetensors", "script.pt"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.98])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, part: float) -> None:
    SAVERS[name](toy_tensors(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(part * len(content))])
    assert re.search("truncated|damaged", refusal(tmp_path / name))


@pytest.mark.parametrize("name", ["zip.pth", "old.ckpt", "plain.safetensors", "script.pt"])
def test_flipped_bytes_are_refused_or_read_but_never_crash(tmp_path: Path, name: str) -> None:
    SAVERS[name](toy_tensors(), tmp_path / "sound")
    content = (tmp_path / "sound").read_bytes()
    generator = torch.Generator().manual_seed(8)
    refused = 0
    for places in torch.randint(len(content), (60, 8), generator=generator).tolist():
        damaged = bytearray(content)
        for place in places:
            damaged[place] ^= 0xA5
        (tmp_path / name).write_bytes(damaged)
        try:
            read_checkpoint(tmp_path / name)
        except InputError as error:
            refused += 1
            assert str(tmp_path / name) in str(error)
    assert refused > 20


def test_a_header_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "long.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b'{"a": 1}')
    assert "is truncated" in refusal(tmp_path / "long.safetensors")


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("photo.txt", "x")
    assert "damaged" in refusal(tmp_path / "photos.pth")


@pytest.mark.parametrize("document", [{}, {"epoch": 3}, [torch.ones(1)], torch.ones(1), {"state_dict": {}}])
def test_a_pickle_without_weights_is_refused(tmp_path: Path, document: Any) -> None:
    torch.save(document, tmp_path / "empty.pth")
    assert "holds no weights" in refusal(tmp_path / "empty.pth")


def test_a_safetensors_file_without_weights_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    assert "holds no weights" in refusal(tmp_path / "empty.safetensors")


class RunsCommand:
    """Unpickled in full, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("save", [torch.save, save_old])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, save: Callable[[Any, Path], None]) -> None:
    save(toy_tensors() | {"x": RunsCommand(tmp_path / "ran")}, tmp_path / "evil.pth")
    text = refusal(tmp_path / "evil.pth")
    assert "could run code" in text
    assert re.search(r"(posix|nt)\.mkdir", text)
    assert not (tmp_path / "ran").exists()
    # The same file does run it without a check: the test would notice.
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"ema": {"a": torch.ones(1), "b": torch.ones(1)}, "epoch": 3}, "'ema' (2 tensors), 'epoch' (int)"),
        ({"state_dict": {"inner": {"a": torch.ones(1)}}}, "'inner' (1 tensors)"),
        ({}, "its keys are none"),
        ([torch.ones(1)], "got a list"),
    ],
)
def test_weights_in_another_place_are_located_for_the_user(
    tmp_path: Path, document: object, said: str
) -> None:
    torch.save(document, tmp_path / "wrapped.pth")
    text = refusal(tmp_path / "wrapped.pth")
    assert said in text
    assert "expected a state dict, alone or under one of the keys state_dict, model, module" in text


@pytest.mark.parametrize("name", ["a.weight.absmax", "a.SCB", "a.qweight", "scaled_fp8", "a.scale_weight"])
def test_quantized_weights_are_refused_by_the_name_of_a_scale(tmp_path: Path, name: str) -> None:
    save_file({"a.weight": torch.ones(2), name: torch.ones(1)}, tmp_path / "small.safetensors")
    assert f"tensor {name} belongs to quantized weights" in refusal(tmp_path / "small.safetensors")


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"<!doctype html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
    ],
)
def test_another_format_is_named(tmp_path: Path, start: bytes, what: str) -> None:
    (tmp_path / "file.pth").write_bytes(start)
    assert what in refusal(tmp_path / "file.pth")


def test_a_sparse_tensor_in_a_file_is_named(tmp_path: Path) -> None:
    torch.save(toy_tensors() | {"drawn": torch.ones(5).to_sparse()}, tmp_path / "sparse.pth")
    assert "tensor drawn is stored by torch._utils._rebuild_sparse_tensor" in refusal(tmp_path / "sparse.pth")


def test_metadata_of_safetensors_is_kept(tmp_path: Path) -> None:
    save_file(toy_tensors(), tmp_path / "said.safetensors", metadata={"modelspec.title": "toy"})
    assert read_checkpoint(tmp_path / "said.safetensors").metadata == {"modelspec.title": "toy"}


def test_an_ordered_dictionary_is_a_state_dict_too(tmp_path: Path) -> None:
    torch.save(collections.OrderedDict(toy_tensors()), tmp_path / "ordered.pth")
    assert_same_tensors(read_checkpoint(tmp_path / "ordered.pth"), toy_tensors())
