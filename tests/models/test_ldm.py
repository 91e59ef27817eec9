"""Single files in Stable Diffusion's original layout: what `tests.support.ldm_layout` writes is read back."""

import copy
import re
from pathlib import Path

import pytest

from refdiff.errors import InputError

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import save_file

from refdiff.models.configs import Shapes
from refdiff.models.diffusion import SD15, SD21, build_text_encoder, build_unet, load_diffusion
from refdiff.models.diffusion import ldm as ldm_keys
from refdiff.models.diffusion.ldm import infer_configs
from tests.support.ldm_layout import original_state
from tests.support.small_diffusion import ROWS, SMALL, answers, small_model

pytestmark = pytest.mark.needs_torch

UNET, VAE = "model.diffusion_model.", "first_stage_model."
OPEN_CLIP = "cond_stage_model.model."


def original(name, **options):
    return original_state(**small_model(name), open_clip=name == "sd2", **options)


def write(tensors, path):
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 7, "epoch": 1}, path)
    else:
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path)
    return path


def load(path, name="sd1", **options):
    prediction = SMALL[name].prediction if name == "sd2" else None
    return load_diffusion(path, **{"image_size": 64, "prediction": prediction, **options})


def assert_same(part, modules):
    """The loaded modules compute what the originals do, to the last bit (copied to aligned addresses)."""
    got = answers(copy.deepcopy({name: loader() for name, loader in part.loaders.items()}))
    for name, values in answers(modules).items():
        assert torch.equal(got[name], values), name


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", SMALL)
def test_a_single_file_computes_what_its_modules_do(name, suffix, tmp_path):
    part = load(write(original(name), tmp_path / f"model{suffix}"), name)
    assert_same(part, small_model(name))
    assert part.vocabulary == ROWS
    assert part.spec.prediction == SMALL[name].prediction
    assert part.spec.padding == ("zero" if name == "sd2" else "end")
    assert len(set(part.sources.values())) == 1


def test_half_precision_is_widened(tmp_path):
    halved = {name: copy.deepcopy(module).half() for name, module in small_model("tiny").items()}
    path = write(original_state(**halved, open_clip=False), tmp_path / "half.safetensors")
    assert_same(load(path), {name: module.float() for name, module in halved.items()})


def test_names_without_the_inner_tower_are_read(tmp_path):
    tensors = {key.replace(".text_model.", "."): value for key, value in original("tiny").items()}
    assert_same(load(write(tensors, tmp_path / "model.safetensors")), small_model("tiny"))


def test_linear_attention_weights_in_the_vae_are_read(tmp_path):
    tensors = {
        key: value.flatten(1) if ".attn_1." in key and value.ndim == 4 else value
        for key, value in original("tiny").items()
    }
    assert_same(load(write(tensors, tmp_path / "model.safetensors")), small_model("tiny"))


def test_what_lies_outside_the_three_modules_is_passed_over(tmp_path):
    tensors = original("tiny")
    tensors |= {"model_ema.diffusion_modelconv": torch.zeros(2), f"{VAE}loss.logvar": torch.zeros(1)}
    assert_same(load(write(tensors, tmp_path / "model.ckpt")), small_model("tiny"))


def with_both_sets():
    """A file whose averaged weights differ from the others, and a model with the averaged ones."""
    tensors, modules = original("tiny"), copy.deepcopy(small_model("tiny"))
    for key in [key for key in tensors if key.startswith(UNET)]:
        flat = key.removeprefix("model.").replace(".", "")
        tensors[f"model_ema.{flat}"] = tensors[key] + 0.01
    for parameter in modules["unet"].parameters():
        parameter.data += 0.01
    return tensors, modules


@pytest.mark.parametrize("unet_set", [None, "non-ema", "ema"])
def test_of_two_sets_of_weights_the_one_that_is_not_averaged_is_read_unless_asked(tmp_path, unet_set):
    tensors, averaged = with_both_sets()
    part = load(write(tensors, tmp_path / "model.ckpt"), unet_set=unet_set)
    assert_same(part, averaged if unet_set == "ema" else small_model("tiny"))
    stated = "EMA weights" if unet_set == "ema" else "non-EMA weights"
    assert part.sources["unet"] == f"{part.sources['vae']}, {stated}"


@pytest.mark.parametrize("unet_set", ["ema", "non-ema"])
def test_a_file_with_one_set_does_not_say_which(tmp_path, unet_set):
    path = write(original("tiny"), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"--diffusion-weights .* holds one set of UNet weights"):
        load(path, unet_set=unet_set)
    with pytest.raises(InputError, match=r"unknown --diffusion-weights 'x'"):
        load(path, unet_set="x")


def test_an_incomplete_averaged_set_is_named_as_the_file_calls_it(tmp_path):
    tensors, _ = with_both_sets()
    del tensors["model_ema.diffusion_modelout2weight"]
    with pytest.raises(InputError, match=r"tensor model_ema\.diffusion_modelout2weight is missing"):
        load(write(tensors, tmp_path / "model.ckpt"), unet_set="ema")


def test_a_first_generation_file_may_be_said_to_predict_v(tmp_path):
    path = write(original("sd1"), tmp_path / "model.safetensors")
    assert load(path, prediction="v_prediction").spec.prediction == "v_prediction"


def test_a_second_generation_file_needs_to_be_given_what_it_predicts(tmp_path):
    path = write(original("sd2"), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"--prediction epsilon .* or --prediction v_prediction"):
        load_diffusion(path, image_size=64)


def test_a_file_that_says_nothing_predicts_the_noise(tmp_path):
    assert load(write(original("tiny"), tmp_path / "model.safetensors")).spec.prediction == "epsilon"


def said(tmp_path, metadata=None, **tensors):
    """A first-generation file with metadata and marker tensors."""
    path = tmp_path / "model.safetensors"
    whole = {key: value.contiguous().clone() for key, value in {**original("tiny"), **tensors}.items()}
    save_file(whole, path, metadata=metadata)
    return path


SPEC = "modelspec.prediction_type"
V_PREDICTED = [
    ({}, {"v_pred": torch.zeros(0)}),
    ({SPEC: "v"}, {}),
    ({SPEC: "v_prediction"}, {}),
    ({"ss_v_parameterization": "True"}, {}),
    ({SPEC: "v"}, {"v_pred": torch.zeros(0)}),
]


@pytest.mark.parametrize(("metadata", "tensors"), V_PREDICTED)
def test_a_first_generation_file_that_says_it_predicts_v_is_believed(tmp_path, metadata, tensors):
    path = said(tmp_path, metadata, **tensors)
    assert load(path).spec.prediction == "v_prediction"
    with pytest.raises(InputError, match=r"got prediction epsilon, but .* says v_prediction"):
        load(path, prediction="epsilon")


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({SPEC: "epsilon"}, {"v_pred": torch.zeros(0)}, "contradicts itself: its tensor v_pred says v_pred"),
        ({SPEC: "epsilon", "ss_v_parameterization": "True"}, {}, "contradicts itself"),
        ({SPEC: "flow"}, {}, "modelspec.prediction_type = 'flow', expected epsilon or v"),
        ({}, {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, "tensor ztsnr .* zero SNR"),
        ({"ss_zero_terminal_snr": "True"}, {}, "metadata ss_zero_terminal_snr .* zero SNR"),
        ({}, {"betas": torch.linspace(0.1, 0.2, 1000)}, "tensor betas is not Stable Diffusion's"),
        ({}, {"alphas_cumprod": torch.linspace(1, 0, 1000)}, "tensor alphas_cumprod is not Stable"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, {}, r"its tensors are those of .* 1\.x"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base"}, {}, "'stable-diffusion-xl-v1-base', exp"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, {}, "'stable-diffusion-v1/lora', expected"),
        ({"modelspec.architecture": "stable-diffusion-v1-inpainting"}, {}, "inpainting', expected"),
    ],
)
def test_a_file_that_contradicts_itself_or_the_method_is_refused(tmp_path, metadata, tensors, message):
    with pytest.raises(InputError, match=message) as raised:
        load(said(tmp_path, metadata, **tensors))
    assert "model.safetensors" in str(raised.value)


def test_metadata_that_agrees_is_accepted(tmp_path):
    metadata = {
        SPEC: "epsilon",
        "modelspec.architecture": "stable-diffusion-v1",
        "ss_zero_terminal_snr": "False",
    }
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    for dtype in (torch.float64, torch.float32, torch.float16):
        part = load(said(tmp_path, metadata, alphas_cumprod=torch.cumprod(1 - betas, 0).to(dtype)))
        assert part.spec.prediction == "epsilon"


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("lora_unet_down_blocks_0_attentions_0.lora_up.weight", "a LoRA"),
        ("unet.down_blocks.0.attn.to_q.lora_A.weight", "a LoRA"),
        ("input_hint_block.0.weight", "a ControlNet"),
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("down_blocks.0.resnets.0.conv1.weight", "name its whole folder"),
        ("encoder.down.0.block.0.conv1.weight", "an autoencoder"),
        ("emb_params", "a textual inversion"),
        ("visual.conv1.weight", "--clip"),
        ("mask_decoder.mask_tokens.weight", "--sam"),
        ("model_ema.diffusion_modelout2weight", "averaged weights"),
        ("something.else", "its keys are something.else"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, key, what):
    message = refusal({key: torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "holds no UNet" in message
    assert what in message


def test_a_controlnet_with_its_model_is_refused(tmp_path):
    message = refusal({**original("tiny"), "control_model.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "control_model.x belongs to ControlNet" in message


@pytest.mark.parametrize(("name", "open_clip"), [("sd1", False), ("sd2", True), ("tiny", False)])
def test_the_keys_are_those_of_diffusers_own_converters(name, open_clip):
    modules, tensors = small_model(name), original(name)
    unet, text = modules["unet"], modules["text_encoder"]
    ours = ldm_keys.unet_keys(list(unet.state_dict()), unet.config.layers_per_block)
    converted = theirs.convert_ldm_unet_checkpoint(dict(tensors), dict(unet.config))
    assert {key: tensors[UNET + ours[key]].data_ptr() for key in ours} == {
        key: value.data_ptr() for key, value in converted.items()
    }

    names = [n for n in modules["vae"].state_dict() if n.startswith(("encoder.", "quant_conv."))]
    ours = ldm_keys.vae_keys(names)
    converted = theirs.convert_ldm_vae_checkpoint(dict(tensors), dict(modules["vae"].config))
    assert {key: tensors[VAE + ours[key]].data_ptr() for key in ours} == {
        key: value.data_ptr() for key, value in converted.items() if key in names
    }
    assert {key for key in converted if not key.startswith(("decoder.", "post_"))} == set(names)

    if open_clip:
        converted = theirs.convert_open_clip_checkpoint(text, dict(tensors))
        for key, original_key in ldm_keys.open_clip_keys(list(text.state_dict())).items():
            value = converted[f"text_model.{key.removeprefix('text_model.')}"]
            assert torch.equal(value, text.state_dict()[key]), key
            assert OPEN_CLIP + original_key in tensors


@pytest.mark.parametrize("configs", [SD15, SD21], ids=["sd15", "sd21"])
def test_the_published_sizes_are_read_off_the_shapes(configs):
    with init_empty_weights(include_buffers=False):
        modules = {
            "unet": build_unet(configs),
            "vae": AutoencoderKL(**configs.vae),
            "text_encoder": build_text_encoder(configs),
        }
    tensors = original_state(**modules, open_clip=configs is SD21)
    assert all(tensor.is_meta for key, tensor in tensors.items() if key.startswith((UNET, VAE)))
    shapes = Shapes(Path("x"), tensors)
    assert infer_configs(shapes, configs.prediction) == configs


def test_a_tower_of_23_blocks_has_lost_its_unused_one_already():
    with init_empty_weights(include_buffers=False):
        text = build_text_encoder(SD21)
    small = small_model("sd2")
    for unused_block in (True, False):
        tensors = original_state(small["unet"], small["vae"], text, open_clip=True, unused_block=unused_block)
        shapes = Shapes(Path("x"), tensors)
        assert infer_configs(shapes, "epsilon").text["num_hidden_layers"] == 23


def refusal(tensors, path, name="sd1"):
    with pytest.raises(InputError) as raised:
        load(write(tensors, path), name)
    message = str(raised.value)
    assert path.name in message
    assert "\n" not in message
    return message


MISSING = {
    "sd1": (
        f"{UNET}input_blocks.0.0.weight",
        f"{UNET}input_blocks.4.0.in_layers.2.weight",
        f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        f"{UNET}output_blocks.5.2.conv.bias",
        f"{UNET}middle_block.1.norm.weight",
        f"{VAE}quant_conv.weight",
        f"{VAE}encoder.down.1.downsample.conv.weight",
        f"{VAE}encoder.mid.attn_1.proj_out.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.bias",
    ),
    "sd2": (
        f"{OPEN_CLIP}positional_embedding",
        f"{OPEN_CLIP}transformer.resblocks.1.attn.in_proj_weight",
        f"{OPEN_CLIP}ln_final.bias",
    ),
}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in MISSING.items() for key in keys])
def test_a_missing_tensor_is_named_as_the_file_would_call_it(name, key, tmp_path):
    tensors = original(name)
    del tensors[key]
    assert re.search(
        rf"tensor {re.escape(key)}( \(and 2 more\))? is missing",
        refusal(tensors, tmp_path / "m.safetensors", name),
    )


@pytest.mark.parametrize(
    "key", [f"{UNET}control.weight", f"{VAE}encoder.extra", "cond_stage_model.transformer.x"]
)
def test_a_surplus_tensor_inside_a_module_is_named(key, tmp_path):
    message = refusal({**original("tiny"), key: torch.zeros(1)}, tmp_path / "m.safetensors")
    assert f"tensor {key} is not part" in message


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (f"{UNET}middle_block.0.out_layers.3.weight", (64, 63, 3, 3)),
        (f"{UNET}out.2.weight", (4, 32)),
        (f"{VAE}encoder.mid.attn_1.q.weight", (64, 64, 3, 3)),
        (f"{UNET}input_blocks.1.0.out_layers.3.weight", (40, 32, 3, 3)),
    ],
)
def test_a_tensor_of_another_shape_is_refused(key, shape, tmp_path):
    message = refusal({**original("sd1"), key: torch.zeros(shape)}, tmp_path / "m.safetensors")
    assert "shape" in message or "no module can be built" in message


def test_a_misshapen_stacked_projection_is_named(tmp_path):
    key = f"{OPEN_CLIP}transformer.resblocks.0.attn.in_proj_weight"
    for rows in (2, 300):
        assert key in refusal(
            {**original("sd2"), key: torch.zeros(rows, 128)}, tmp_path / "m.safetensors", "sd2"
        )


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("conditioner.embedders.1.model.ln_final.weight", "SDXL"),
        (f"{UNET}label_emb.0.0.weight", "SDXL"),
        (f"{UNET}joint_blocks.0.x_block.attn.qkv.weight", "SD 3"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
    ],
)
def test_other_families_are_refused_by_their_name(key, model, tmp_path):
    message = refusal({**original("tiny"), key: torch.zeros(1)}, tmp_path / "m.safetensors")
    assert key in message
    assert model in message


def test_an_inpainting_unet_is_refused(tmp_path):
    key = f"{UNET}input_blocks.0.0.weight"
    tensors = {**original("sd1"), key: torch.zeros(32, 9, 3, 3)}
    with pytest.raises(InputError, match=r"9 input channels.*inpainting"):
        load(write(tensors, tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    ("prefix", "part"), [(UNET, "UNet"), (VAE, "VAE"), ("cond_stage_model.", "text encoder")]
)
def test_a_missing_part_is_named(prefix, part, tmp_path):
    tensors = {key: value for key, value in original("tiny").items() if not key.startswith(prefix)}
    assert f"holds no {part}" in refusal(tensors, tmp_path / "m.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_truncated_file_is_refused(suffix, tmp_path):
    path = write(original("tiny"), tmp_path / f"m{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"m\.\w+ is (damaged|no checkpoint)"):
        load(path)


def test_a_unet_without_attention_to_text_is_refused(tmp_path):
    tensors = {key: value for key, value in original("tiny").items() if "proj_in" not in key}
    assert "expected a UNet with cross-attention" in refusal(tensors, tmp_path / "m.safetensors")
