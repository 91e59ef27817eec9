"""Diffusers folders: written by diffusers, read by this package, the same numbers."""

import copy
import json
import shutil

import pytest

from refdiff.contracts.options import AttentionOptions
from refdiff.errors import InputError
from refdiff.runtime.diffusion import alphas_cumprod

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file

from refdiff.export.diffusion_graphs import SdText, Unet, VaeEncoder
from refdiff.models.diffusion import (
    load_diffusion,
)
from tests.support.small_diffusion import ROWS, SMALL, answers, small_model, write_folder

pytestmark = pytest.mark.needs_torch


WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def sd1_folder(tmp_path_factory):
    """Read it; change a `copied` one."""
    return write_folder("sd1", tmp_path_factory.mktemp("folder") / "sd1")


@pytest.fixture
def copied(sd1_folder, tmp_path):
    return shutil.copytree(sd1_folder, tmp_path / "copied")


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """Of fewer tensors, for what is refused."""
    return write_folder("tiny", tmp_path_factory.mktemp("folder") / "tiny")


@pytest.fixture
def tiny(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "tiny")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def loaded(part):
    return {name: load() for name, load in part.loaders.items()}


def assert_same(part, modules):
    """The loaded modules compute what the originals do, to the last bit.

    They are copied first: a mapped file's tensors begin at any address, and some kernels sum in another order
    where that is not aligned.
    """
    got, expected = answers(copy.deepcopy(loaded(part))), answers(modules)
    for name, values in expected.items():
        assert torch.equal(got[name], values), name


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_computes_what_its_pipeline_does(name, tmp_path):
    part = load_diffusion(write_folder(name, tmp_path / name), image_size=64)
    assert_same(part, small_model(name))
    assert part.vocabulary == ROWS
    assert part.spec.prediction == SMALL[name].prediction
    assert part.spec.padding == ("zero" if name == "sd2" else "end")
    assert part.spec.context_width == SMALL[name].text_width
    assert set(part.sources) == set(part.loaders) == {"text_encoder", "vae", "unet"}
    assert len(set(part.sources.values())) == 3


@pytest.mark.parametrize("name", SMALL)
def test_the_exporters_graphs_take_what_was_loaded(name, tmp_path):
    part = load_diffusion(write_folder(name, tmp_path / name), image_size=64)
    modules, expected = loaded(part), answers(small_model(name))
    generator = torch.Generator().manual_seed(1)  # as in `answers`
    ids = torch.randint(0, ROWS, (2, 77), generator=generator)
    image, latent = (torch.randn(shape, generator=generator) for shape in ((1, 3, 64, 64), (2, 4, 8, 8)))
    with torch.no_grad():
        context = SdText(modules["text_encoder"])(ids)
        moments = VaeEncoder(modules["vae"], 0.18215)(image)
        unet = Unet(modules["unet"], part.spec)
        output, taps = unet(latent, torch.full((2,), 51.0), context)
    got = {"text_encoder": context, "vae": moments, "unet": output}
    for component, values in expected.items():
        torch.testing.assert_close(got[component], values, atol=1e-4, rtol=1e-4)
    assert taps.shape == (2, len(part.spec.tapped_layers), part.spec.tap_size**2, 77)


def test_a_model_without_its_innermost_blocks_is_tapped_in_its_last_level(tmp_path):
    spec = load_diffusion(write_folder("tiny", tmp_path / "tiny"), image_size=64).spec
    assert spec.tapped_layers == (
        "down_blocks.2.attentions.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
    )
    assert (spec.cut_after, spec.tap_size, spec.vae_factor) == ("up_blocks.0", 2, 8)


def test_pickles_shards_and_half_precision_are_read(tmp_path):
    pickled = write_folder("tiny", tmp_path / "bin", safe_serialization=False)
    torch.save(
        small_model("tiny")["text_encoder"].state_dict(), pickled / "text_encoder" / "pytorch_model.bin"
    )
    (pickled / "text_encoder" / "model.safetensors").unlink(
        missing_ok=True
    )  # transformers 5 writes no pickle
    assert list((pickled / "unet").glob("*.bin"))
    assert_same(load_diffusion(pickled, image_size=64), small_model("tiny"))

    sharded = write_folder("tiny", tmp_path / "shards", max_shard_size="1MB")
    assert (sharded / "unet" / f"{WEIGHTS}.safetensors.index.json").is_file()
    assert_same(load_diffusion(sharded, image_size=64), small_model("tiny"))

    halved = {name: copy.deepcopy(module).half() for name, module in small_model("tiny").items()}
    half = write_folder("tiny", tmp_path / "half", modules=halved, variant="fp16")
    assert (half / "unet" / f"{WEIGHTS}.fp16.safetensors").is_file()
    rounded = {name: copy.deepcopy(module).float() for name, module in halved.items()}
    assert_same(load_diffusion(half, image_size=64), rounded)


def test_full_precision_is_read_where_both_are_there(copied):
    weights = copied / "unet" / f"{WEIGHTS}.safetensors"
    (copied / "unet" / f"{WEIGHTS}.fp16.safetensors").write_bytes(b"not read")
    part = load_diffusion(copied, image_size=64)
    save_file({key: 2 * value for key, value in load_file(weights).items()}, weights)
    assert part.sources != load_diffusion(copied, image_size=64).sources


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_of_both_transformers_generations_are_read(copied, prefix):
    path = copied / "text_encoder" / "model.safetensors"
    bare = {key.removeprefix("text_model."): value for key, value in load_file(path).items()}
    bare["embeddings.position_ids"] = torch.arange(77)[None]
    save_file({prefix + key: value for key, value in bare.items()}, path)
    assert_same(load_diffusion(copied, image_size=64), small_model("sd1"))


def test_the_old_names_of_the_vaes_attention_are_read(copied):
    path = copied / "vae" / f"{WEIGHTS}.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in tensors
    save_file(tensors, path)
    assert_same(load_diffusion(copied, image_size=64), small_model("sd1"))


def test_what_a_config_leaves_out_has_its_classs_default(copied):
    for part, fields in (("unet", ("mid_block_type", "layers_per_block")), ("vae", ("latent_channels",))):
        path = copied / part / "config.json"
        kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in fields}
        path.write_text(json.dumps(kept))
    assert_same(load_diffusion(copied, image_size=64), small_model("sd1"))


def test_the_vae_is_loaded_without_its_decoder(sd1_folder):
    vae = loaded(load_diffusion(sd1_folder, image_size=64))["vae"]
    assert not list(vae.decoder.parameters())
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert not vae.training


@pytest.mark.parametrize("token", ["!", {"content": "!", "lstrip": False}])
def test_the_padding_token_is_read_in_either_spelling(copied, token):
    (copied / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({"pad_token": token}))
    assert load_diffusion(copied, image_size=64).spec.padding == "zero"


def test_of_two_files_of_unet_weights_the_one_that_is_asked_for_is_read(copied):
    averaged = copied / "unet" / "diffusion_pytorch_model.safetensors"
    other = averaged.with_name("diffusion_pytorch_model.non_ema.safetensors")
    plain = load_diffusion(copied, image_size=64).sources["unet"]
    with pytest.raises(InputError, match=r"non_ema\.safetensors.*or pass --diffusion-weights ema"):
        load_diffusion(copied, image_size=64, unet_set="non-ema")
    save_file({key: value + 1 for key, value in load_file(averaged).items()}, other)
    parts = {kind: load_diffusion(copied, image_size=64, unet_set=kind) for kind in (None, "ema", "non-ema")}
    first = {kind: next(part.loaders["unet"]().parameters()) for kind, part in parts.items()}
    assert torch.equal(first["ema"], first[None])
    assert torch.equal(first["non-ema"], first[None] + 1)
    assert parts["ema"].sources["unet"] == f"{plain}, EMA weights"
    assert parts["non-ema"].sources["unet"].endswith(", non-EMA weights")


def test_a_folder_that_does_not_say_what_it_predicts_takes_the_callers_word(copied):
    path = copied / "scheduler" / "scheduler_config.json"
    document = json.loads(path.read_text())
    del document["prediction_type"]
    path.write_text(json.dumps({**document, "num_train_timesteps": 500}))
    spec = load_diffusion(copied, image_size=64, prediction="v_prediction").spec
    assert (spec.prediction, spec.train_timesteps, spec.beta_end) == ("v_prediction", 500, 0.012)
    assert load_diffusion(copied, image_size=64).spec.prediction == "epsilon"


BROKEN = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
    "damaged index": (lambda f: (f / "model_index.json").write_text("{"), "not readable as JSON"),
    "two text encoders": (
        lambda f: edit(f / "model_index.json", text_encoder_2=["transformers", "x"]),
        "text_encoder_2.*SDXL",
    ),
    "no unet": (lambda f: shutil.rmtree(f / "unet"), "lacks unet/config.json"),
    "no vae weights": (lambda f: (f / "vae" / f"{WEIGHTS}.safetensors").unlink(), "vae has no weights"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json does not exist"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "special_tokens_map.json nor"),
    "other padding": (
        lambda f: (f / "tokenizer" / "tokenizer_config.json").write_text('{"pad_token": "x"}'),
        "pad_token is 'x'",
    ),
    "other schedule": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", beta_schedule="linear"),
        "beta_schedule is 'linear', expected 'scaled_linear'",
    ),
    "zero terminal snr": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True),
        "rescale_betas_zero_snr",
    ),
    "predicts the sample": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", prediction_type="sample"),
        "prediction_type is 'sample'",
    ),
    "another vae": (
        lambda f: edit(f / "vae" / "config.json", _class_name="AutoencoderDC"),
        "_class_name names 'AutoencoderDC', expected 'AutoencoderKL' or 'AutoencoderTiny'",
    ),
    "sd 3's latents": (lambda f: edit(f / "vae" / "config.json", shift_factor=0.06), "shift_factor"),
    "inpainting": (lambda f: edit(f / "unet" / "config.json", in_channels=9), "9 input channels.*inpainting"),
    "more conditions": (
        lambda f: edit(f / "unet" / "config.json", addition_embed_type="text_time"),
        "addition_embed_type = 'text_time'",
    ),
    "other kernels": (
        lambda f: edit(f / "unet" / "config.json", conv_in_kernel=5),
        r"unet/.*tensor conv_in\.weight has shape \[32, 4, 3, 3\], expected \[32, 4, 5, 5\]",
    ),
    "too few levels": (
        lambda f: edit(f / "unet" / "config.json", block_out_channels=[32, 64]),
        r"UNet with .*'block_out_channels': \(32, 64\).* expected one entry per level",
    ),
    "a level that is no list": (
        lambda f: edit(f / "vae" / "config.json", block_out_channels=32),
        r"vae/config\.json: block_out_channels is 32, expected a list",
    ),
    "deeper transformers": (
        lambda f: edit(f / "unet" / "config.json", transformer_layers_per_block=[1, 2, 10]),
        "transformer layers per block",
    ),
    "a field of the future": (
        lambda f: edit(f / "unet" / "config.json", flux="x"),
        "'flux', which this version",
    ),
    "other text width": (
        lambda f: edit(f / "unet" / "config.json", cross_attention_dim=96),
        "width 96, expected its text encoder's 64",
    ),
    "indivisible groups": (
        lambda f: edit(f / "unet" / "config.json", block_out_channels=[33, 64, 64]),
        "no module can be built",
    ),
    "other block widths": (
        lambda f: edit(f / "unet" / "config.json", block_out_channels=[32, 64, 96]),
        r"unet/.*tensor down_blocks\.2.* is missing",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_a_folder_that_cannot_be_used_is_refused_with_its_reason(tiny, damage, message):
    damage(tiny)
    with pytest.raises(InputError, match=message):
        load_diffusion(tiny, image_size=64)


DEEP = '{"x": ' * 100_000 + "1" + "}" * 100_000
NO_SETTINGS = [
    ("text_encoder/config.json", "num_attention_heads", 3),
    ("text_encoder/config.json", "num_attention_heads", "a"),
    ("text_encoder/config.json", "num_attention_heads", 0),
    ("text_encoder/config.json", "num_attention_heads", True),
    ("text_encoder/config.json", "hidden_size", None),
    ("text_encoder/config.json", "layer_norm_eps", "z"),
    ("text_encoder/config.json", "layer_norm_eps", float("nan")),
    ("text_encoder/config.json", "hidden_act", {}),
    ("text_encoder/config.json", "hidden_act", "no such"),
    ("text_encoder/config.json", "architectures", 5),
    ("text_encoder/config.json", "architectures", [5]),
    ("vae/config.json", "scaling_factor", None),
    ("vae/config.json", "scaling_factor", "x"),
    ("vae/config.json", "scaling_factor", float("nan")),
    ("vae/config.json", "scaling_factor", float("inf")),
    ("vae/config.json", "scaling_factor", 10**400),
    ("vae/config.json", "scaling_factor", 0),
    ("vae/config.json", "scaling_factor", -0.18215),
    ("vae/config.json", "latent_channels", None),
    ("vae/config.json", "layers_per_block", "2"),
    ("vae/config.json", "act_fn", 5),
    ("vae/config.json", "down_block_types", "x"),
    ("unet/config.json", "layers_per_block", None),
    ("unet/config.json", "layers_per_block", 2.0),
    ("unet/config.json", "layers_per_block", "2"),
    ("unet/config.json", "layers_per_block", 0),
    ("unet/config.json", "down_block_types", [{}] * 3),
    ("unet/config.json", "mid_block_type", {}),
    ("unet/config.json", "mid_block_type", ["UNetMidBlock2DCrossAttn"]),
    ("unet/config.json", "in_channels", -4),
    ("unet/config.json", "cross_attention_dim", {}),
    ("unet/config.json", "cross_attention_dim", 64.0),
    ("unet/config.json", "norm_eps", "z"),
    ("unet/config.json", "norm_eps", 0),
    ("unet/config.json", "use_linear_projection", "no"),
    ("unet/config.json", "_class_name", {}),
    ("scheduler/scheduler_config.json", "beta_start", float("nan")),
    ("scheduler/scheduler_config.json", "beta_start", 0),
    ("scheduler/scheduler_config.json", "beta_start", None),
    ("scheduler/scheduler_config.json", "beta_end", -0.012),
    ("scheduler/scheduler_config.json", "beta_end", float("nan")),
    ("scheduler/scheduler_config.json", "beta_end", 1.5),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 0),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 50),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 101),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 1000.5),
    ("scheduler/scheduler_config.json", "num_train_timesteps", "many"),
    ("tokenizer/tokenizer_config.json", "pad_token", []),
    ("tokenizer/tokenizer_config.json", "pad_token", {"content": {}}),
]
"""File, field, and a value with which the field says nothing that can be computed with."""


def refusal(folder):
    """What is said against a folder, in one line."""
    with pytest.raises(InputError) as caught:
        load_diffusion(folder, image_size=64)
    assert "\n" not in str(caught.value)
    assert str(caught.value).encode()
    return str(caught.value)


@pytest.mark.parametrize(("file", "field", "value"), NO_SETTINGS)
def test_a_setting_that_is_no_setting_is_refused_with_its_file_and_field(tiny, file, field, value):
    edit(tiny / file, **{field: value})
    message = refusal(tiny)
    assert str(tiny / file) in message
    assert field.removeprefix("_") in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("conv_in_kernel", -7),
        ("norm_num_groups", -7),
        ("block_out_channels", [31] * 3),
        ("act_fn", "\ud800"),  # which JSON can hold and no terminal can print
    ],
)
def test_sizes_that_fit_no_module_are_refused_with_the_configs_name(tiny, field, value):
    edit(tiny / "unet" / "config.json", **{field: value})
    assert str(tiny / "unet" / "config.json") in refusal(tiny)


@pytest.mark.parametrize("name", ["model_index", "unet/config", "scheduler/scheduler_config"])
@pytest.mark.parametrize(
    "content", [DEEP.encode(), b"{" + b'"a": {' * 200 + b"}" * 201, b"\xff\xfe", b"[]", b""]
)
def test_a_file_that_is_no_json_object_of_settings_is_named(tiny, name, content):
    (tiny / f"{name}.json").write_bytes(content)
    assert str(tiny / f"{name}.json") in refusal(tiny)


def test_the_shortest_schedule_still_has_the_level_the_method_starts_on(tiny):
    edit(tiny / "scheduler" / "scheduler_config.json", num_train_timesteps=102)
    spec = load_diffusion(tiny, image_size=64).spec
    assert 0 < alphas_cumprod(spec)[AttentionOptions.start_level] < 1


def test_a_second_generation_folder_has_to_be_given_what_it_predicts(tmp_path):
    folder = write_folder("sd2", tmp_path / "sd2")
    path = folder / "scheduler" / "scheduler_config.json"
    edit(path, prediction_type=None)
    message = refusal(folder)
    assert str(path) in message
    assert "Stable Diffusion 2.x" in message
    assert "--prediction epsilon" in message
    for prediction in ("epsilon", "v_prediction"):
        assert load_diffusion(folder, image_size=64, prediction=prediction).spec.prediction == prediction


@pytest.mark.parametrize("kind", ["float8", "sparse"])
def test_weights_of_a_kind_that_is_not_read_are_refused_before_they_are_loaded(tiny, kind):
    state = small_model("sd1")["text_encoder"].state_dict()
    key = next(key for key in state if key.endswith("final_layer_norm.weight"))
    state[key] = state[key].to(torch.float8_e4m3fn) if kind == "float8" else state[key].to_sparse()
    (tiny / "text_encoder" / "model.safetensors").unlink()
    torch.save(state, tiny / "text_encoder" / "pytorch_model.bin")
    message = refusal(tiny)
    assert f"pytorch_model.bin: tensor {key}" in message
    assert kind in message


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_missing_or_surplus_tensor_is_named_before_anything_is_loaded(tiny, part):
    (path,) = (tiny / part).glob("*.safetensors")
    tensors = load_file(path)
    missing = next(key for key in tensors if "encoder" in key or "down_blocks" in key)
    save_file({key: value for key, value in tensors.items() if key != missing}, path)
    with pytest.raises(InputError, match=f"{path.name}: tensor {missing} is missing"):
        load_diffusion(tiny, image_size=64)
    save_file({**tensors, "surplus.weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"tensor surplus\.weight is not part"):
        load_diffusion(tiny, image_size=64)


def test_a_truncated_file_is_refused_by_name(tiny):
    path = tiny / "vae" / f"{WEIGHTS}.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"vae/diffusion_pytorch_model\.safetensors is damaged or truncated"):
        load_diffusion(tiny, image_size=64)


def test_a_prediction_the_folder_contradicts_is_refused(sd1_folder):
    with pytest.raises(InputError, match=r"got prediction v_prediction, but .* says epsilon"):
        load_diffusion(sd1_folder, image_size=64, prediction="v_prediction")
    load_diffusion(sd1_folder, image_size=64, prediction="epsilon")


def test_an_unknown_prediction_and_a_missing_path_are_refused(tmp_path):
    with pytest.raises(InputError, match="unknown prediction 'x0'; choose one of: epsilon, v_prediction"):
        load_diffusion(tmp_path, image_size=64, prediction="x0")
    with pytest.raises(InputError, match="does not exist"):
        load_diffusion(tmp_path / "absent", image_size=64)
