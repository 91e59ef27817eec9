"""Damaged and hostile checkpoint files end in one line, whatever their bytes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import save_file

from refdiff.errors import InputError
from refdiff.models.checkpoint import read_checkpoint
from refdiff.models.configs import Shapes
from refdiff.models.diffusion.ldm import infer_configs
from refdiff.models.diffusion.ldm_claims import check_kind, read_prediction
from refdiff.models.diffusion.taps import diffusion_spec
from tests.models.test_torch_files import Inner, save_script
from tests.support.fuzzing import fuzz, fuzz_file
from tests.support.ldm_layout import original_state
from tests.support.small_diffusion import small_model

TENSORS = {
    "linear.weight": torch.arange(12.0).reshape(4, 3),
    "linear.bias": torch.arange(4.0).half(),
    "steps": torch.tensor(3),
}


def sample(name: str, file: Path) -> bytes:
    if name == "safetensors":
        save_file(TENSORS, file, metadata={"modelspec.prediction_type": "v"})
    elif name == "script":
        save_script(Inner(), file)
    else:
        torch.save({"state_dict": TENSORS, "epoch": 3}, file, _use_new_zipfile_serialization=name == "zip")
    return file.read_bytes()


def read_all(file: Path) -> None:
    """Read a checkpoint and every byte of its tensors."""
    for tensor in read_checkpoint(file).tensors.values():
        tensor.double().sum() if tensor.numel() else None


@pytest.mark.parametrize("name", ["safetensors", "zip", "script", "legacy"])
def test_mutated_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "watched").mkdir()
    content = sample(name, tmp_path / "sample")
    count = fuzz_file(read_all, [content], tmp_path / "watched" / "file", seed=15, allowed=InputError)
    assert count.refused > count.read


class _UnreadableError(Exception):
    """JSON that the test itself cannot read."""


def test_mutated_shapes_of_a_single_file_are_understood_or_refused() -> None:
    tensors = original_state(**small_model("tiny"), open_clip=False)
    shapes = json.dumps({key: list(tensor.shape) for key, tensor in tensors.items()}).encode()

    def detect(content: bytes) -> None:
        try:
            document: dict[str, Any] = dict(json.loads(content))
            sizes = {key: tuple(abs(int(length)) for length in size) for key, size in document.items()}
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise _UnreadableError from error
        found = {key: SimpleNamespace(shape=size) for key, size in sizes.items()}
        read = Shapes(Path("model"), found)
        check_kind(read)
        read_prediction({}, {}, Path("model"))
        diffusion_spec(infer_configs(read, "epsilon"), 64, whose="model")

    detect(shapes)
    count = fuzz(detect, [shapes], seed=16, allowed=(InputError, _UnreadableError))
    assert count.refused > 0
