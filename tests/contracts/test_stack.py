"""Loading the miniature's weights: what does not fit is named, nothing is filled in silently."""

from __future__ import annotations

import shutil

import pytest

from refdiff.errors import InputError

pytestmark = pytest.mark.needs_torch


@pytest.fixture
def weights(tmp_path):
    from refdiff.miniature.stack import WEIGHTS

    return shutil.copytree(WEIGHTS, tmp_path / "weights")


def test_the_shipped_weights_load_in_eval_mode(weights):
    from refdiff.miniature.stack import load_miniature

    stack = load_miniature(weights=weights)
    assert set(stack.sources) == {"vae", "text", "unet", "sam", "clip"}
    assert not stack.unet.training
    assert not any(p.requires_grad for p in stack.sam.parameters())


def test_a_missing_file_is_named_with_the_cure(weights):
    from refdiff.miniature.stack import load_miniature

    (weights / "sam.safetensors").unlink()
    with pytest.raises(InputError, match=r"sam\.safetensors are missing.*make miniature"):
        load_miniature(weights=weights)


@pytest.mark.parametrize("change", ["drop", "add", "reshape"])
def test_weights_of_another_shape_are_refused(weights, change):
    import safetensors.torch

    from refdiff.miniature.stack import load_miniature

    path = weights / "text.safetensors"
    state = safetensors.torch.load_file(path)
    key = sorted(state)[0]
    tensor = state.pop(key)
    if change == "add":
        state |= {key: tensor, "unknown": tensor.clone()}
    elif change == "reshape":
        state[key] = tensor[:1].clone()
    safetensors.torch.save_file(state, path)
    with pytest.raises(InputError, match=r"text\.safetensors does not fit"):
        load_miniature(weights=weights)


def test_the_decoder_alone_may_be_absent(weights):
    import safetensors.torch

    from refdiff.miniature.stack import load_miniature

    path = weights / "vae.safetensors"
    state = safetensors.torch.load_file(path)
    assert not any(key.startswith("decoder.") for key in state)
    del state["quant_conv.weight"]
    safetensors.torch.save_file(state, path)
    with pytest.raises(InputError, match=r"quant_conv\.weight"):
        load_miniature(weights=weights)
