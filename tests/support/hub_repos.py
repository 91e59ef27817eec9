"""Repositories of a hub on this machine."""

import json
from pathlib import Path
from typing import Any

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


def resolve(name: str, **options: Any) -> Path:
    from refdiff.models.hub import download

    return download.resolve(name, **options)
