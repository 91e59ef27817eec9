"""The reference's heatmap: schedule, taps, passes, and the resize to the image."""

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from refdiff.contracts.options import VARIANTS, AttentionOptions
from refdiff.contracts.stack import COMPONENTS, ModelStack
from refdiff.errors import InputError, RefdiffError
from refdiff.runtime import diffusion as runtime
from refdiff.runtime.attention_branch import AttentionBranch
from refdiff.runtime.map_reader import MapReader
from refdiff.runtime.phrase import parse_phrase
from refdiff.runtime.tokenizer import Tokenizer

torch = pytest.importorskip("torch")

from diffusers import AutoencoderTiny

from refdiff.export.wrappers import TorchSessions
from refdiff.reference.diffusion import (
    alphas_cumprod,
    attend,
    ddim_step,
    encode_image,
    encode_prompts,
    focus_maps,
    generative_map,
    heatmap_on_image,
    noise_of,
    pad_to_square,
)
from refdiff.reference.taps import CROSS_ATTENTION, head_mean_attention, tapped
from tests.support.tiny_stack import TINY, tiny_picture, tiny_stack

pytestmark = pytest.mark.needs_torch

LAYERS = TINY.diffusion.tapped_layers


@pytest.fixture
def tokenizer():
    return Tokenizer(tiny_stack().tokenizer_json, TINY.context_length)


def _unet_inputs():
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 4, 16, 16, generator=generator)
    return latent, torch.randn(2, TINY.context_length, 32, generator=generator)


def test_the_levels_are_the_ones_the_method_prints():
    alphas = alphas_cumprod(TINY.diffusion)
    printed = [0.892980537, 0.950524322, 0.998296028]
    np.testing.assert_allclose([alphas[t] for t in (101, 51, 1)], printed, atol=1e-9)
    np.testing.assert_allclose(alphas, runtime.alphas_cumprod(TINY.diffusion), rtol=1e-12)


@pytest.mark.parametrize("variant", ["official", "edge"])
def test_the_latent_of_a_tiny_autoencoder_is_its_own_output_and_the_runtimes(variant):
    torch.manual_seed(3)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(16,) * 3, num_encoder_blocks=(1, 1, 1), scaling_factor=0.7
    ).eval()
    whole = tiny_stack()
    modules = {name: getattr(whole, name) for name in COMPONENTS} | {"vae": tiny}
    stack = ModelStack.of(
        spec=TINY, tokenizer_json=whole.tokenizer_json, sources=whole.sources, modules=modules
    )
    options = dataclasses.replace(VARIANTS[variant], seed=3)
    picture = tiny_picture()
    with torch.no_grad():
        latent = encode_image(stack, options, picture).numpy()
    tokenizer = Tokenizer(stack.tokenizer_json, TINY.context_length)
    branch = AttentionBranch(TorchSessions(stack), TINY.diffusion, options, tokenizer)
    np.testing.assert_allclose(branch.encode(picture).noised, latent, atol=2e-6)
    square = np.asarray(Image.fromarray(pad_to_square(picture)).resize((64, 64), Image.Resampling.LANCZOS))
    with torch.no_grad():
        pixels = torch.from_numpy(square / np.float32(127.5) - 1).permute(2, 0, 1)[None]
        clean = 0.7 * tiny.encode(pixels).latents
    level = alphas_cumprod(TINY.diffusion)[options.attention.start_level]
    _, noise = runtime.draw_noise(options.seed, clean.shape)
    expected = math.sqrt(level) * clean.numpy() + math.sqrt(1 - level) * noise
    np.testing.assert_allclose(latent, expected, atol=2e-6)


def test_a_ddim_step_with_the_true_noise_lands_on_the_cleaner_level():
    clean, noise = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    noisy = math.sqrt(0.9) * clean + math.sqrt(0.1) * noise
    expected = math.sqrt(0.99) * clean + math.sqrt(0.01) * noise
    torch.testing.assert_close(ddim_step(noisy, noise, 0.9, 0.99), expected)


def test_the_head_mean_is_one_product_of_the_unsplit_projections():
    hidden, context = torch.randn(2, 64, 16), torch.randn(2, 77, 32)
    layer = tiny_stack().unet.get_submodule(f"{LAYERS[0]}.{CROSS_ATTENTION}")
    queries, keys = layer.to_q(hidden), layer.to_k(context)
    head_width = queries.shape[-1] // layer.heads
    identity = queries @ keys.transpose(1, 2) / (layer.heads * math.sqrt(head_width))
    assert layer.heads > 1
    torch.testing.assert_close(head_mean_attention(layer, hidden, context, softmax=False), identity)


def test_tapping_changes_no_number_and_leaves_no_trace():
    unet, (latent, context) = tiny_stack().unet, _unet_inputs()
    before = dict(unet.attn_processors)
    plain = unet(latent, 51, encoder_hidden_states=context).sample
    with tapped(unet, LAYERS) as taps:
        recorded = unet(latent, 51, encoder_hidden_states=context).sample
    assert torch.equal(plain, recorded)
    assert taps.stacked(passes=1).shape == (1, len(LAYERS), 2, 64, TINY.context_length)
    assert unet.attn_processors == before


def test_the_processors_are_put_back_when_the_block_fails():
    unet = tiny_stack().unet
    before = dict(unet.attn_processors)
    with pytest.raises(ZeroDivisionError), tapped(unet, LAYERS):
        raise ZeroDivisionError
    assert unet.attn_processors == before


def test_softmax_taps_are_the_probabilities_diffusers_computes():
    unet, (latent, context) = tiny_stack().unet, _unet_inputs()
    seen = []
    layer = unet.get_submodule(f"{LAYERS[0]}.{CROSS_ATTENTION}")
    with tapped(unet, LAYERS[:1], softmax=True) as taps:
        handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        unet(latent, 51, encoder_hidden_states=context)
        handle.remove()
    queries, keys = (layer.head_to_batch_dim(part) for part in (layer.to_q(seen[0]), layer.to_k(context)))
    expected = layer.get_attention_scores(queries, keys).view(2, layer.heads, 64, -1).mean(dim=1)
    torch.testing.assert_close(taps.stacked(passes=1)[0, 0], expected)


def test_an_unknown_layer_is_refused_by_name():
    with (
        pytest.raises(InputError, match=r"down_blocks\.0\.attentions\.0"),
        tapped(tiny_stack().unet, ("down_blocks.0.attentions.0",)),
    ):
        pass


def test_a_map_too_few_is_an_error():
    latent, context = _unet_inputs()
    with tapped(tiny_stack().unet, LAYERS) as taps:
        tiny_stack().unet(latent, 51, encoder_hidden_states=context)
    with pytest.raises(RefdiffError, match="expected 2 of every layer"):
        taps.stacked(passes=2)


def test_each_pass_is_given_its_own_timestep_and_runs_on_the_stepped_latent(tokenizer):
    """The two passes written out, as METHOD §4.3 does."""
    stack, options, image = tiny_stack(), VARIANTS["official"], tiny_picture()
    with torch.no_grad():
        x = encode_image(stack, options, image)
        context = encode_prompts(stack, tokenizer, "the man")
        with tapped(stack.unet, LAYERS) as taps:
            e_u, e_c = stack.unet(x.repeat(2, 1, 1, 1), 51, encoder_hidden_states=context).sample
            e = e_u + 9 * (e_c - e_u)
            clean = (x - math.sqrt(1 - 0.950524322) * e) / math.sqrt(0.950524322)
            then = math.sqrt(0.998296028) * clean + math.sqrt(1 - 0.998296028) * e
            stack.unet(then.repeat(2, 1, 1, 1), 1, encoder_hidden_states=context)
        unconditional, conditional = taps.stacked(passes=2).unbind(dim=2)
        got = attend(stack, options.attention, x, context).logits
    assert len(got) == 2 * len(LAYERS)
    expected = (9 * conditional - 8 * unconditional).flatten(0, 1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("padding", ["end", "zero"])
def test_the_runtime_makes_the_same_maps_of_every_generation(tokenizer, prediction, padding):
    diffusion = dataclasses.replace(TINY.diffusion, prediction=prediction, padding=padding)
    tiny = tiny_stack()
    stack = ModelStack.of(
        spec=dataclasses.replace(TINY, diffusion=diffusion),
        tokenizer_json=tiny.tokenizer_json,
        sources=tiny.sources,
        modules={name: getattr(tiny, name) for name in ("text_encoder", "vae", "unet")},
    )
    options, phrase, image = VARIANTS["official"], parse_phrase("the man on the left"), tiny_picture()
    found = generative_map(stack, options, tokenizer, image, phrase)
    branch = AttentionBranch(TorchSessions(stack), diffusion, options, tokenizer)
    (logits,) = branch.logits(branch.encode(image), [phrase])
    maps = MapReader(options, diffusion, tokenizer).maps(logits, phrase)
    np.testing.assert_allclose(maps, found.maps, atol=1e-4)
    plain = generative_map(tiny, options, tokenizer, image, phrase).maps
    assert (np.abs(found.maps - plain).max() > 1e-3) == ((prediction, padding) != ("epsilon", "end"))


@pytest.mark.parametrize("change", [{"rescale": True}, {"end_token": 1.0}, {"layer_weights": (1.0,)}])
def test_maps_that_the_reference_does_not_read_are_refused(tokenizer, change):
    attention = dataclasses.replace(VARIANTS["edge"].attention, **change)
    options = dataclasses.replace(VARIANTS["edge"], attention=attention)
    with pytest.raises(InputError, match="the torch reference has no"):
        generative_map(tiny_stack(), options, tokenizer, tiny_picture(), parse_phrase("the mug"))


@pytest.mark.parametrize("name", ["edge", "official"])
@pytest.mark.parametrize(
    "change", [{"coarse": 2.0}, {"propagate": 1}, {"coarse": 0.5, "propagate": 2}], ids=str
)
def test_the_runtime_reads_the_coarsest_level_and_the_self_attention_alike(tokenizer, name, change):
    tiny, phrase, image = tiny_stack(), parse_phrase("the man"), tiny_picture()  # "left" would be a ramp
    diffusion = TINY.diffusion.with_maps(("coarse", "self"))
    stack = ModelStack.of(
        spec=dataclasses.replace(TINY, diffusion=diffusion),
        tokenizer_json=tiny.tokenizer_json,
        sources=tiny.sources,
        modules={name: getattr(tiny, name) for name in ("text_encoder", "vae", "unet")},
    )
    plain = VARIANTS[name]
    options = dataclasses.replace(plain, attention=dataclasses.replace(plain.attention, **change))
    found = generative_map(tiny, options, tokenizer, image, phrase)
    branch = AttentionBranch(TorchSessions(stack), diffusion, options, tokenizer)
    latent = branch.encode(image)
    (logits,) = branch.logits(latent, [phrase])
    maps = MapReader(options, diffusion, tokenizer).maps(logits, phrase)
    np.testing.assert_allclose(maps, found.maps, atol=1e-4)
    reader = MapReader(options, diffusion, tokenizer)
    heat = reader.heatmap(logits, image.shape[:2], phrase)
    np.testing.assert_allclose(heat, found.heatmap, atol=0.02 if name == "official" else 1e-3)  # 8 bits
    as_it_is = generative_map(tiny, plain, tokenizer, image, phrase).heatmap
    assert np.abs(found.heatmap - as_it_is).max() > 0.05


def test_softmax_self_attention_is_averaged_over_heads_as_it_is(tokenizer):
    """Of head-mean logits a softmax is flatter than the mean of the heads' own; METHOD §10.12 says so."""
    stack, options = tiny_stack(), dataclasses.replace(VARIANTS["edge"].attention, propagate=1)
    with torch.no_grad():
        x = encode_image(stack, VARIANTS["edge"], tiny_picture())
        context = encode_prompts(stack, tokenizer, "the man")
        ours = attend(stack, options, x, context).cells
        theirs = attend(stack, dataclasses.replace(options, softmax=True), x, context).cells
    for cells in (ours, theirs):
        torch.testing.assert_close(cells.sum(dim=1), torch.ones(64, dtype=torch.float64))
    assert (ours - theirs).abs().max() > 1e-4


def test_a_velocity_is_solved_for_the_noise_it_was_made_of():
    clean, noise = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    noisy = math.sqrt(0.9) * clean + math.sqrt(0.1) * noise
    velocity = math.sqrt(0.9) * noise - math.sqrt(0.1) * clean
    torch.testing.assert_close(noise_of(velocity, noisy, 0.9, "v_prediction"), noise)
    assert noise_of(noise, noisy, 0.9, "epsilon") is noise


def test_the_mean_posterior_is_drawn_from_no_seed_but_its_noise_is():
    stack, image, edge = tiny_stack(), tiny_picture(), VARIANTS["edge"]
    with torch.no_grad():
        clean = [encode_image(stack, dataclasses.replace(edge, seed=seed), image) for seed in (0, 0, 1)]
    assert torch.equal(clean[0], clean[1])
    assert not torch.equal(clean[0], clean[2])


def test_the_heat_is_the_pictures_size_and_spans_0_to_1(tokenizer):
    phrase = parse_phrase("the man on the left")
    found = generative_map(tiny_stack(), VARIANTS["official"], tokenizer, tiny_picture(), phrase)
    assert found.heatmap.shape == (48, 72)
    assert found.heatmap.dtype == np.float32
    assert (found.heatmap.min(), found.heatmap.max()) == (0.0, pytest.approx(1.0))
    assert found.maps.shape == (2 * len(LAYERS), 8, 8)


@pytest.mark.parametrize("uint8_lanczos", [True, False])
@pytest.mark.parametrize("size_yx", [(48, 72), (72, 48), (5, 3)])
def test_rows_stay_rows_on_the_way_to_the_picture(uint8_lanczos, size_yx):
    small = torch.zeros(8, 8)
    small[4, 2:6] = torch.tensor([1.0, 0.8, 0.6, 0.4])  # left of the middle row, inside both croppings
    options = AttentionOptions(uint8_lanczos=uint8_lanczos)
    heat = heatmap_on_image(small, size_yx, options)
    assert heat.shape == size_yx
    runtimes = runtime.heatmap_on_image(small.numpy(), size_yx, uint8_lanczos=uint8_lanczos)
    np.testing.assert_allclose(heat, runtimes, atol=2e-5)
    if size_yx == (48, 72):
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        assert 24 <= y < 36 and 18 <= x < 27


def test_a_flat_map_is_zero_not_nan():
    maps = focus_maps(torch.full((2, 64, 77), 3.0), (4,), 8)
    assert torch.equal(maps, torch.zeros(2, 8, 8))
    assert not heatmap_on_image(maps[0], (4, 6), AttentionOptions()).any()


def test_the_mean_focus_averages_the_columns_before_it_spreads_them():
    logits = torch.randn(3, 64, 77, generator=torch.Generator().manual_seed(0))
    got = focus_maps(logits, (2, 5), 8).numpy()
    np.testing.assert_allclose(got, runtime.normalize_maps(logits.numpy(), (2, 5), 8), atol=1e-6)


def test_the_padding_is_black_and_the_picture_centred():
    square = pad_to_square(np.full((2, 5, 3), 7, dtype=np.uint8))
    assert square.shape == (5, 5, 3)
    assert square[1:3].all()
    assert not square[[0, 3, 4]].any()
