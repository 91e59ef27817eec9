"""Hostile checkpoints and a hostile hub."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.fault_ground import Case, Ground, call, fault_of
from tests.support.fake_hub import FakeHub
from tests.support.fuzzing import mutations

_REPO = "someone/some-sam"
_FILES = {"config.json": b'{"model_type": "sam"}', "model.safetensors": bytes(range(256)) * 4000}


class _Runs:
    """An object whose pickle runs a command that makes a file."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self._target}",)


def checkpoints(ground: Ground) -> Iterator[Case]:
    """Export checkpoint files that run code, lie about sizes or are mutated."""
    written = ground.outside / "written"
    cases = [*_hostile(written), *_mutated(ground)]
    for number, (name, content) in enumerate(cases if not ground.sample else cases[:: len(cases) // 8]):
        path = ground.fresh("model.safetensors" if number % 2 else "model.pt")
        path.write_bytes(content)
        part = ("--diffusion", "--sam", "--clip")[number % 3]
        parts = [each for name in ("--diffusion", "--sam", "--clip") for each in (name, path)]
        output = ground.fresh("exported")
        arguments = ("export", "refdiff", *parts, "--offline", "-o", output, "-q")
        fault = fault_of(call(*arguments, ground=ground), codes=(2,))
        if written.exists():
            fault = "it ran code"
        yield f"{name} as {part}", fault or ("it exported" if output.exists() else None)


def _hostile(written: Path) -> Iterator[tuple[str, bytes]]:
    program = pickle.dumps(_Runs(written))
    yield "pickle that runs a command", program
    yield "legacy file that runs a command", pickle.dumps(0x1950A86A20F9469CFC6C, 2) + program
    yield "zip that runs a command", _zip([("a/data.pkl", program), ("a/byteorder", b"little")])
    yield "zip with its pickle doubled", _zip([("a/data.pkl", b"\x80\x02}."), ("a/DATA.pkl", program)])
    yield "zip of a bomb", _zip([("a/data.pkl", bytes(100 << 20))], zipfile.ZIP_DEFLATED)
    for name in ("../evil", "/etc/passwd", "a/../../evil", "a/\x1b[31m", "a\\..\\evil"):
        yield f"zip with {name!r}", _zip([("a/data.pkl", b"\x80\x02}."), (name, b"x")])
    for module, name in (("builtins", "eval"), ("os", "system"), ("torch", "load"), ("torch.jit", "load")):
        yield f"pickle of {module}.{name}", f"c{module}\n{name}\n(S'1'\ntR.".encode()
        found = b"\x80\x02" + f"c{module}\n{name}\n(X\x01\0\0\x001tR.".encode()
        yield f"zip of {module}.{name}", _zip([("a/data.pkl", found)])
    yield "pickle without end", b"\x80\x02" + b"(" * 1_000_000
    yield "pickle of a huge string", b"\x80\x02X\xff\xff\xff\x7f."
    yield "pickle of a huge memo", b"\x80\x02]r\xff\xff\xff\x7f."
    tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    lies: dict[str, Any] = {
        "negative offsets": {**tensor, "data_offsets": [-16, 0]},
        "offsets after the end": {**tensor, "data_offsets": [0, 1 << 60]},
        "offsets the wrong way": {**tensor, "data_offsets": [16, 0]},
        "huge shape": {**tensor, "shape": [1 << 40, 1 << 40]},
        "negative shape": {**tensor, "shape": [-1, -4]},
        "shape of text": {**tensor, "shape": "2x2"},
        "unknown dtype": {**tensor, "dtype": "__import__"},
        "a list": [],
        "nothing": {},
    }
    for name, lie in lies.items():
        yield f"safetensors with {name}", _safetensors({"a": lie})
    yield "safetensors with overlaps", _safetensors({"a": tensor, "b": tensor})
    yield "safetensors of a control character", _safetensors({"\x1b[31m": tensor})
    yield "safetensors with a huge header", struct.pack("<Q", 1 << 60) + b"{}"
    yield "safetensors with a deep header", struct.pack("<Q", 60_000) + b"[" * 60_000
    yield "safetensors with a deep object", struct.pack("<Q", 60_000) + b'{"a":' * 12_000
    yield "nothing", b""
    yield "HTML", b"<!doctype html><title>Sign in</title>"
    yield (
        "pointer of large-file storage",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    )


def _mutated(ground: Ground) -> Iterator[tuple[str, bytes]]:
    import torch
    from safetensors.torch import save

    tensors = {"linear.weight": torch.ones(4, 3), "linear.bias": torch.ones(4).half()}
    samples = {"safetensors": save(tensors)}
    for name, zipped in (("zip", True), ("legacy", False)):
        stream = io.BytesIO()
        torch.save({"state_dict": tensors, "epoch": 3}, stream, _use_new_zipfile_serialization=zipped)
        samples[name] = stream.getvalue()
    for name, content in samples.items():
        numbered = enumerate(
            islice(mutations([content], seed=ground.rng.randrange(1 << 30)), ground.count(40, 4))
        )
        yield from ((f"{name} number {number}", mutated) for number, mutated in numbered)


def _zip(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return stream.getvalue()


def _safetensors(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


@dataclass(frozen=True, kw_only=True)
class _Lie:
    """What a hub does wrong."""

    name: str
    files: dict[str, bytes] = field(default_factory=lambda: dict(_FILES))
    behavior: dict[str, Any] = field(default_factory=dict)
    """Of `FakeHub`."""
    codes: tuple[int, ...] = (2, 3)
    model: str = _REPO


def _lies(ground: Ground) -> Iterator[_Lie]:
    weights = _FILES["model.safetensors"]
    yield _Lie(name="other bytes of the same size", behavior={"lies": {"model.safetensors": weights[::-1]}})
    yield _Lie(name="a short body", behavior={"lies": {"model.safetensors": weights[:1000]}})
    yield _Lie(name="a long body", behavior={"lies": {"model.safetensors": weights * 2}})
    yield _Lie(name="an endless config", behavior={"lies": {"config.json": bytes(5_000_000)}})
    yield _Lie(name="listed and not there", behavior={"vanished": {"config.json"}})
    yield _Lie(name="behind a login", behavior={"gated": {_REPO}})
    yield _Lie(
        name="control characters in the licence",
        behavior={"licence": "\x1b[31mfree\x07\r\n"},
        codes=(0, 2, 3),
    )
    yield _Lie(name="cut off three times", behavior={"cuts": [10, 100_000, 500_000]}, codes=(0,))
    yield _Lie(name="cut, and ranges ignored", behavior={"cuts": [1000], "ignores_ranges": True}, codes=(0,))
    yield _Lie(name="no such model", model="someone/else")
    for name in (
        "../../evil",
        "/etc/evil",
        "a/../../evil",
        "..",
        "a\\..\\..\\evil",
        "\x1b[31m.json",
        "a" * 5000,
        "con\0fig",
    ):
        yield _Lie(name=f"a file named {name[:30]!r}", files={**_FILES, name: b"x"}, codes=(0, 2, 3))
        text = json.dumps({"weight_map": {"a": name}}).encode()
        files = {"config.json": _FILES["config.json"], "model.safetensors.index.json": text, name: b"x"}
        yield _Lie(name=f"shards named {name[:30]!r}", files=files, codes=(0, 2, 3))
    for number in range(ground.count(30, 2)):
        cut = ground.rng.randrange(len(weights))
        yield _Lie(name=f"cut at byte {cut} ({number})", behavior={"cuts": [cut]}, codes=(0,))


def hub(ground: Ground) -> Iterator[Case]:
    """Fetch from a hub that lies."""
    lies = list(_lies(ground))
    for lie in lies if not ground.sample else lies[::6]:
        target = ground.fresh("fetched")
        before = set(ground.folder.iterdir())
        with FakeHub(**lie.behavior) as served:
            served.put(_REPO, lie.files)
            os.environ["HF_ENDPOINT"] = served.address
            ending = call("fetch", lie.model, "--to", target, "-q", ground=ground)
        fault = fault_of(ending, codes=lie.codes)
        kept = {path.name for path in ground.folder.iterdir()} - {path.name for path in before} - {"fetched"}
        yield lie.name, fault or _unsound(target, lie, ok=ending.code == 0) or _outside(kept)


def _outside(kept: set[str]) -> str | None:
    others = {name for name in kept if not name.startswith(".fetched")} - {"cache", "hf", "state"}
    return f"wrote {sorted(others)}" if others else None


def _unsound(target: Path, lie: _Lie, *, ok: bool) -> str | None:
    """Return which fetched files are not those of the hub."""
    found = {path.name: path.read_bytes() for path in target.rglob("*.safetensors")}
    if ok and "model.safetensors" in lie.files and "model.safetensors" not in found:
        return "it said that all is there, and it is not"
    wrong = [name for name, content in found.items() if content != _FILES.get(name, b"x")]
    return f"unverified: {wrong}" if wrong else None


ATTACKS: dict[str, Callable[[Ground], Iterator[Case]]] = {"checkpoints": checkpoints, "hub": hub}
