"""torch's files are read as data: hostile ones are refused, and none of them runs code."""

import io
import pickle
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")

from torch import nn

from refdiff.errors import InputError
from refdiff.models.checkpoint import read_checkpoint
from refdiff.models.torch_files import read_archive, read_legacy

PLACEHOLDER = "/PLACEHOLDER"


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("constant", torch.full((2,), 7.0))
        self.sizes = [3, 4]
        self.note: str = "x"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.constant.sum()


class Writes(nn.Module):
    """TorchScript that writes a file while torch loads it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.weight = state[0]
        self.training = state[1]
        torch.save(self.weight, "/PLACEHOLDER")


def save_script(module: nn.Module, file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates writing these
        torch.jit.script(module).save(str(file))


def load_script(file: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(file)


def entries(file: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def write_zip(file: Path, content: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")  # doubled names
        for name, data in content:
            archive.writestr(name, data)
    return file


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A sound TorchScript archive."""
    save_script(Inner(), tmp_path / "inner.pt")
    return tmp_path / "inner.pt"


def refusal(file: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_checkpoint(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- sound files


def test_a_script_has_the_tensors_that_torch_finds_in_it(script: Path) -> None:
    ours, theirs = read_checkpoint(script).tensors, load_script(script).state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.bool, torch.int16]
)
def test_every_dtype_and_view_is_read_as_torch_reads_it(
    tmp_path: Path, dtype: torch.dtype, legacy: bool
) -> None:
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    document = {
        "whole": whole,
        "transposed": whole.T,
        "column": whole[:, 2],
        "corner": whole[1:, 3:],
        "scalar": whole[2, 2],
        "empty": whole[:0],
        "parameter": nn.Parameter(whole, requires_grad=False),
    }
    file = tmp_path / "views.pth"
    torch.save(document, file, _use_new_zipfile_serialization=not legacy)
    ours = read_checkpoint(file).tensors
    theirs = torch.load(file)
    assert {name: tensor.stride() for name, tensor in ours.items()} == {
        name: tensor.stride() for name, tensor in theirs.items()
    }
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_binary_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    torch.save({"a": torch.ones(3), "epoch": 2**40}, tmp_path / "a.pth", pickle_protocol=protocol)
    assert torch.equal(read_checkpoint(tmp_path / "a.pth").tensors["a"], torch.ones(3))


def test_writing_to_a_tensor_leaves_its_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"a": torch.ones(3)}, file)
    before = file.read_bytes()
    read_checkpoint(file).tensors["a"].fill_(5.0)
    assert file.read_bytes() == before


# --- code


@pytest.fixture
def writes(tmp_path: Path) -> Callable[[Path], list[tuple[str, bytes]]]:
    """The content of an archive that writes a file when torch loads it."""
    save_script(Writes(), tmp_path / "writes.pt")
    content = entries(tmp_path / "writes.pt")
    (tmp_path / "writes.pt").unlink()
    return lambda target: [
        (n, data.replace(PLACEHOLDER.encode(), str(target).encode())) for n, data in content
    ]


def test_code_of_an_archive_is_not_run(
    tmp_path: Path, writes: Callable[[Path], list[tuple[str, bytes]]]
) -> None:
    file = write_zip(tmp_path / "evil.pt", writes(tmp_path / "written"))
    assert "__setstate__" in refusal(file)
    assert not (tmp_path / "written").exists()
    load_script(file)  # torch does run it: the test would notice
    assert (tmp_path / "written").exists()


@pytest.mark.parametrize("rename", [str, str.upper, str.title])
def test_doubled_names_are_refused_in_any_case(
    tmp_path: Path,
    script: Path,
    writes: Callable[[Path], list[tuple[str, bytes]]],
    rename: Callable[[str], str],
) -> None:
    evil = [(name, data) for name, data in writes(tmp_path / "written") if name.endswith(".py")]
    folder = entries(script)[0][0].split("/")[0]
    doubled = [(f"{folder}/{rename(name.split('/', 1)[1])}", data) for name, data in evil]
    sound = [(f"{folder}/code/__torch__.py", b"class X: pass"), *entries(script)]
    text = refusal(write_zip(tmp_path / "doubled.pt", [*doubled, *sound]))
    assert "two entries" in text
    assert not (tmp_path / "written").exists()


def test_brackets_and_size_of_the_code_do_not_matter(tmp_path: Path, script: Path) -> None:
    content = [(n, b"(" * 50_000 if n.endswith(".py") else data) for n, data in entries(script)]
    folder = content[0][0].split("/")[0]
    file = write_zip(tmp_path / "deep.pt", [*content, (f"{folder}/code/large.py", bytes(50 << 20))])
    started = time.monotonic()
    assert "linear.weight" in read_checkpoint(file).tensors
    assert time.monotonic() - started < 1


# --- archives with more than one interpretation


def change(file: Path, edit: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> Path:
    return write_zip(file.with_name("changed.pt"), edit(entries(file)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("inner/../../evil", "leads outside"),
        ("/etc/passwd", "leads outside"),
        ("inner\\..\\evil", "leads outside"),
        ("inner/\x1b[31m", "leads outside"),
        ("other/data.pkl", "2 files FOLDER/data.pkl"),
        ("other/data/0", "outside of inner/"),
        ("top.pt", "outside of inner/"),
    ],
)
def test_an_entry_in_another_place_is_refused(script: Path, name: str, said: str) -> None:
    assert said in refusal(change(script, lambda content: [*content, (name, b"x")]))


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = [("a/data.pkl", bytes(200 << 20)), ("a/data/0", b"")]
    file = write_zip(tmp_path / "bomb.pth", bomb, zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 1 << 20
    assert "is compressed" in refusal(file) or "more than" in refusal(file)


def test_an_archive_inside_an_archive_is_not_opened(tmp_path: Path, script: Path) -> None:
    nested = change(
        script, lambda c: [(n, script.read_bytes() if n.endswith("data.pkl") else d) for n, d in c]
    )
    assert "damaged" in refusal(nested)


@pytest.mark.parametrize("what", [b"x", b"PK", bytes(100)])
def test_bytes_around_an_archive_are_refused(script: Path, what: bytes) -> None:
    content = script.read_bytes()
    script.write_bytes(content + what)
    assert "something follows" in refusal(script)
    script.write_bytes(b"PK\3\4" + what + content)
    assert "damaged" in refusal(script)


def test_an_archive_after_another_one_is_refused(script: Path) -> None:
    script.write_bytes(script.read_bytes() * 2)
    assert "is not where it says" in refusal(script)


@pytest.mark.parametrize("big", [False, True])
def test_a_byte_order_is_obeyed_or_refused(tmp_path: Path, big: bool) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pth")
    order = b"big" if big else b"little"
    file = change(tmp_path / "a.pth", lambda c: [(n, order if n.endswith("byteorder") else d) for n, d in c])
    if big:
        assert "little-endian" in refusal(file)
    else:
        assert torch.equal(read_checkpoint(file).tensors["a"], torch.ones(3))


# --- tensors that are not in their file


class Storage:
    """Writes the persistent identity of a storage that the test chooses."""

    def __init__(self, *identity: Any) -> None:
        self.identity = identity


class Tensor:
    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, item: object) -> Any:
        return item.identity if isinstance(item, Storage) else None


def archive_of(file: Path, document: object, data: bytes) -> Path:
    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(document)
    return write_zip(file, [("a/data.pkl", stream.getvalue()), ("a/data/0", data)])


def described(
    elements: int = 4,
    offset: int = 0,
    size: Any = (4,),
    stride: Any = (1,),
    key: str = "0",
    kind: str = "storage",
) -> dict[str, Tensor]:
    storage = Storage(kind, torch.FloatStorage, key, "cpu", elements)
    return {"w": Tensor(storage, offset, size, stride, False, None)}


def test_a_described_tensor_is_read(tmp_path: Path) -> None:
    file = archive_of(tmp_path / "a.pth", described(), struct.pack("<4f", 1, 2, 3, 4))
    assert read_checkpoint(file).tensors["w"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"elements": 5},
        {"elements": 1 << 50},
        {"elements": -4},
        {"offset": 1},
        {"offset": -1},
        {"size": (5,)},
        {"size": (1 << 40,), "stride": (0,)},
        {"size": (2, 2)},
        {"size": (-4,)},
        {"size": (2.0,)},
        {"size": [4]},
        {"stride": (2,)},
        {"stride": (-1,)},
        {"size": (1 << 62, 1 << 62), "stride": (1, 1)},
        {"key": "1"},
        {"key": "../../x"},
        {"kind": "module"},
    ],
    ids=str,
)
def test_a_tensor_outside_of_its_storage_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    file = archive_of(tmp_path / "a.pth", described(**wrong), struct.pack("<4f", 1, 2, 3, 4))
    assert "damaged" in refusal(file)


def test_the_readers_agree_on_the_spans_of_a_file(tmp_path: Path) -> None:
    document = {"a": torch.arange(5.0), "b": torch.arange(3)}
    torch.save(document, tmp_path / "new.pth")
    torch.save(document, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    sizes = [
        sorted(nbytes for _, nbytes in file.spans.values())
        for file in (read_archive(tmp_path / "new.pth"), read_legacy(tmp_path / "old.pth"))
    ]
    assert sizes == [[20, 24], [20, 24]]


def test_bytes_after_a_legacy_file_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with (tmp_path / "a.pth").open("ab") as stream:
        stream.write(b"more")
    assert "do not end with the file" in refusal(tmp_path / "a.pth")
