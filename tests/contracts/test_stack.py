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


@pytest.mark.parametrize("name", ["mini", "mini-edge"])
def test_the_shipped_weights_load_in_eval_mode(weights, name):
    from refdiff.miniature.stack import load_miniature

    stack = load_miniature(name, weights=weights)
    assert stack.spec.name == name
    assert set(stack.sources) - {"clip text"} == {"vae", "text", "unet", "sam", "clip"}
    assert not stack.unet.training
    assert not any(p.requires_grad for p in stack.sam.parameters())


def test_an_unknown_miniature_is_refused_with_the_names():
    from refdiff.miniature.stack import load_miniature

    with pytest.raises(InputError, match="'mini-huge'; choose one of: mini, mini-edge"):
        load_miniature("mini-huge")


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
