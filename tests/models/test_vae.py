"""Autoencoders of their own: folders of diffusers, and the file of TAESD's encoder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")

from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from refdiff.errors import InputError
from refdiff.models.diffusion import load_diffusion
from refdiff.models.diffusion.vae import find_vae
from tests.support.small_diffusion import small_model, write_folder

WIDTHS = (16, 16, 16, 16)


def tiny_vae(**options: Any) -> Any:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(5)
        vae = AutoencoderTiny(
            **{"encoder_block_out_channels": WIDTHS, "decoder_block_out_channels": WIDTHS, **options}
        )
    return vae.eval().requires_grad_(requires_grad=False)


def original(vae: Any, part: str = "encoder") -> dict[str, Any]:
    """The tensors as TAESD's author names them; a decoder starts with a clamp, number 0."""
    shift = 1 if part == "decoder" else 0
    named = {}
    for name, tensor in getattr(vae, part).layers.state_dict().items():
        index, _, rest = name.partition(".")
        named[f"{int(index) + shift}.{rest}"] = tensor
    return named


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion as a folder."""
    return Path(write_folder("tiny", tmp_path_factory.mktemp("sd") / "model"))


def image() -> Any:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def write_tiny(vae: Any, target: Path, form: str) -> Path:
    if form == "folder":
        vae.save_pretrained(target)
        return target
    path = target.with_suffix(form)
    if form == ".safetensors":
        save_file(original(vae), path)
    else:
        torch.save(original(vae), path)
    return path


@pytest.mark.parametrize("form", ["folder", ".safetensors", ".pth"])
def test_a_tiny_autoencoder_is_read_in_each_of_its_forms(folder: Path, tmp_path: Path, form: str) -> None:
    vae = tiny_vae()
    path = write_tiny(vae, tmp_path / "taesd_encoder", form)
    part = load_diffusion(folder, image_size=64, vae=path)
    assert (part.spec.vae_factor, part.spec.latent_channels, part.spec.scaling_factor) == (8, 4, 0.18215)
    loaded = part.loaders["vae"]()
    assert isinstance(loaded.decoder, torch.nn.Identity)
    assert torch.equal(loaded.encode(image()).latents, vae.encode(image()).latents)
    assert part.sources["vae"] != load_diffusion(folder, image_size=64).sources["vae"]


def test_the_original_layers_read_an_image_of_0_to_1(tmp_path: Path) -> None:
    vae = tiny_vae()
    path = write_tiny(vae, tmp_path / "taesd_encoder", ".safetensors")
    found = find_vae(path)
    layers = vae.encoder.layers  # as in the original: the same modules in a row
    expected = layers((image() + 1) / 2)
    assert found.config["num_encoder_blocks"] == (1, 3, 3, 3)
    assert torch.equal(tiny_vae().encode(image()).latents, expected)


def test_a_models_own_autoencoder_may_be_tiny_or_missing(folder: Path, tmp_path: Path) -> None:
    vae = tiny_vae(scaling_factor=0.7)
    with_tiny, without = tmp_path / "with", tmp_path / "without"
    for copy in (with_tiny, without):
        shutil.copytree(folder, copy)
        shutil.rmtree(copy / "vae")
    vae.save_pretrained(with_tiny / "vae")
    part = load_diffusion(with_tiny, image_size=64)
    assert part.spec.scaling_factor == 0.18215
    assert part.loaders["vae"]().config.scaling_factor == 0.7
    with pytest.raises(InputError, match=r"lacks vae/config\.json; fetch the whole model"):
        load_diffusion(without, image_size=64)
    assert load_diffusion(without, image_size=64, vae=with_tiny / "vae").spec == part.spec


def test_another_autoencoder_brings_its_own_scale(folder: Path, tmp_path: Path) -> None:
    vae = small_model("tiny")["vae"]
    vae.save_pretrained(tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.25}))
    part = load_diffusion(folder, image_size=64, vae=tmp_path / "vae")
    assert part.spec.scaling_factor == 0.25
    with torch.no_grad():
        expected = vae.encode(image()).latent_dist.mean
        assert torch.equal(part.loaders["vae"]().encode(image()).latent_dist.mean, expected)


def refused(folder: Path, vae: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_diffusion(folder, image_size=64, vae=vae)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_decoder_given_as_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    save_file(original(tiny_vae(), "decoder"), tmp_path / "taesd_decoder.safetensors")
    message = refused(folder, tmp_path / "taesd_decoder.safetensors")
    assert "taesd_decoder.safetensors is TAESD's decoder" in message
    assert "expected TAESD's encoder, as in taesd_encoder.safetensors" in message


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        pytest.param("taesdxl_encoder", {}, "makes latents of SDXL, expected those of Stable", id="SDXL"),
        pytest.param("taesd3_encoder", {"latent_channels": 16}, "makes latents of SD 3", id="SD 3"),
        pytest.param("encoder", {"latent_channels": 16}, "expected the VAE's 16", id="unnamed, 16 channels"),
        pytest.param("encoder", {"in_channels": 4}, "reads 4 channels, not an image's 3", id="not of images"),
    ],
)
def test_an_encoder_for_other_latents_is_refused(
    folder: Path, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    path = write_tiny(tiny_vae(**options), tmp_path / name, ".safetensors")
    assert message in refused(folder, path)


def test_what_is_no_encoder_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "vae")
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    assert f"name the folder {tmp_path / 'vae'}" in refused(folder, weights)
    assert "name its folder" in refused(folder, folder)
    assert "VAE nowhere does not exist" in refused(folder, Path("nowhere"))
    save_file({"visual.proj": torch.ones(2, 2)}, tmp_path / "clip.safetensors")
    assert "no autoencoder of a known layout: it holds visual.proj" in refused(
        folder, tmp_path / "clip.safetensors"
    )
    state = original(vae)
    save_file({**state, "3.conv.6.weight": torch.ones(1)}, tmp_path / "more.safetensors")
    assert "3.conv.6.weight is not part of a known architecture" in refused(
        folder, tmp_path / "more.safetensors"
    )
    save_file({key: state[key] for key in state if key != "1.conv.2.bias"}, tmp_path / "less.safetensors")
    assert "tensor 1.conv.2.bias is missing" in refused(folder, tmp_path / "less.safetensors")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_encoder_blocks", [1, 3, 3], "expected one entry per level in each"),
        ("shift_factor", 0.1, "shift_factor = 0.1"),
        ("scaling_factor", "1", "scaling_factor is '1', expected a finite number above 0"),
        ("act_fn", 3, "act_fn is 3, expected a name"),
        (
            "_class_name",
            "AutoencoderDC",
            "names 'AutoencoderDC', expected 'AutoencoderKL' or 'AutoencoderTiny'",
        ),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(
    folder: Path, tmp_path: Path, field: str, value: Any, message: str
) -> None:
    tiny_vae().save_pretrained(tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: value}))
    assert message in refused(folder, tmp_path / "vae")


def test_a_unet_with_surplus_blocks_is_refused_by_tensor(folder: Path, tmp_path: Path) -> None:
    """A BK-SDM's configuration next to the weights of the model that it was distilled from."""
    shutil.copytree(folder, tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    name = "mid_block.attentions.0.norm.weight"
    state = load_file(weights)
    save_file({**state, name: torch.ones(64)}, weights)
    with pytest.raises(InputError, match=rf"unet/.*: tensor {name} is not part of a known architecture"):
        load_diffusion(tmp_path / "model", image_size=64)
