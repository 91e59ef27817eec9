"""Each wrapper computes what the original modules compute."""

import copy
import dataclasses
import math
from dataclasses import replace
from typing import Any

import pytest

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")

from diffusers import AutoencoderTiny
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from segment_anything.modeling import TwoWayTransformer

from refdiff.contracts.graphs import BLOCKED
from refdiff.contracts.spec import COARSE_LAYER
from refdiff.contracts.stack import ModelStack
from refdiff.errors import InputError
from refdiff.export.diffusion_graphs import VaeEncoder, tapped
from refdiff.export.sam_graphs import SamEncoder
from refdiff.export.sam_layers import FusibleImageEncoder, PromptTransformer
from refdiff.export.small_encoders import rewrite_small_encoder
from refdiff.export.wrappers import clip_positions, wrap
from refdiff.models.sam import SamSizes, build_sam
from refdiff.models.stacks import random_module
from refdiff.networks.efficient_vit import EfficientVitEncoder, efficient_vit_sizes
from refdiff.networks.tiny_vit import TinyVitEncoder, TinyVitSizes
from refdiff.reference import taps as reference_taps
from tests.support.calm_stack import calm_stack


@pytest.fixture(scope="module")
def stack() -> ModelStack:
    return calm_stack()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_ids(stack: ModelStack, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids with one end token each, the highest id of the vocabulary, and its index."""
    end_id = stack.clip.vocab_size - 1
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(
        1, end_id - 1, (batch, stack.spec.context_length), generator=generator, dtype=torch.int32
    )
    end = torch.tensor([3 + 5 * i for i in range(batch)], dtype=torch.int32)
    for row, index in enumerate(end):
        ids[row, int(index)] = end_id
        ids[row, int(index) + 1 :] = 0
    return ids, end


def assert_same(got: torch.Tensor, expected: torch.Tensor, *, relative: float = 2e-5) -> None:
    assert got.shape == expected.shape
    error = (got - expected).abs().max() / (expected.max() - expected.min())
    assert error < relative


@torch.no_grad()
def test_sd_text_is_the_encoders_last_hidden_state(stack: ModelStack) -> None:
    ids, _ = draw_ids(stack)
    assert_same(wrap(stack, "sd_text")(ids), stack.text_encoder(input_ids=ids.long()).last_hidden_state)


@torch.no_grad()
def test_vae_encoder_gives_the_posteriors_moments(stack: ModelStack) -> None:
    side = stack.spec.diffusion.image_size
    image = draw(1, 3, side, side)
    expected = stack.vae.encode(image).latent_dist.parameters
    assert_same(wrap(stack, "vae_encoder")(image), expected)


@pytest.mark.parametrize("factor", [1.0, 0.7])
@torch.no_grad()
def test_a_tiny_autoencoder_gives_the_latent_that_diffusers_pipelines_feed_the_unet(factor: float) -> None:
    torch.manual_seed(3)
    vae = AutoencoderTiny(scaling_factor=factor, encoder_block_out_channels=(16,) * 4).eval()
    image = draw(1, 3, 64, 64).clamp(-1, 1)
    theirs = vae.config.scaling_factor * retrieve_latents(vae.encode(image), sample_mode="argmax")
    mean, log_variance = VaeEncoder(vae, 0.18215)(image).chunk(2, dim=1)
    assert_same(0.18215 * mean, theirs)
    # One sample of the posterior is its mean, to float32.
    assert (0.18215 * (0.5 * log_variance).exp()).max() < 1e-7


def unet_inputs(stack: ModelStack) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    diffusion = stack.spec.diffusion
    latent = draw(2, diffusion.latent_channels, diffusion.latent_size, diffusion.latent_size)
    return (
        latent,
        torch.tensor([51.0, 51.0]),
        draw(2, stack.spec.context_length, diffusion.context_width, seed=1),
    )


@torch.no_grad()
def test_unet_predicts_the_noise_the_original_predicts(stack: ModelStack) -> None:
    latent, timestep, context = unet_inputs(stack)
    expected = stack.unet(latent, timestep, encoder_hidden_states=context).sample
    eps, *_ = wrap(stack, "unet")(latent, timestep, context)
    assert_same(eps, expected)


@torch.no_grad()
def test_taps_are_the_mean_over_heads_of_the_scaled_logits(stack: ModelStack) -> None:
    latent, timestep, context = unet_inputs(stack)
    spec = stack.spec.diffusion
    seen: dict[str, torch.Tensor] = {}
    handles = []
    for layer in spec.tapped_layers:
        attn = stack.unet.get_submodule(f"{layer}.transformer_blocks.0.attn2")

        def keep(module, args, kwargs, layer=layer):  # type: ignore[no-untyped-def]
            query, key = module.to_q(args[0]), module.to_k(kwargs["encoder_hidden_states"])
            query, key = (s.unflatten(-1, (module.heads, -1)).transpose(1, 2) for s in (query, key))
            seen[layer] = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).mean(dim=1)

        handles.append(attn.register_forward_pre_hook(keep, with_kwargs=True))
    stack.unet(latent, timestep, encoder_hidden_states=context)
    for handle in handles:
        handle.remove()

    taps = wrap(stack, "unet")(latent, timestep, context)[1]

    expected = torch.stack([seen[layer] for layer in spec.tapped_layers], dim=1)
    assert taps.shape == (2, len(spec.tapped_layers), spec.tap_size**2, stack.spec.context_length)
    assert_same(taps, expected)


@torch.no_grad()
def test_the_other_maps_are_those_of_the_middle_block_and_of_the_self_attentions(stack: ModelStack) -> None:
    latent, timestep, context = unet_inputs(stack)
    spec, unet = stack.spec.diffusion, stack.unet
    with (
        reference_taps.tapped(unet, [COARSE_LAYER]) as middle,
        reference_taps.tapped(unet, spec.tapped_layers, attention=reference_taps.SELF_ATTENTION) as itself,
    ):
        unet(latent, timestep, encoder_hidden_states=context)
    _, _, coarse, cells = wrap(stack, "unet")(latent, timestep, context)
    assert_same(coarse, middle.stacked(passes=1)[0].transpose(0, 1))
    assert_same(cells, itself.stacked(passes=1)[0].transpose(0, 1))


@torch.no_grad()
def test_unet_taps_are_the_taps_of_the_full_pass(stack: ModelStack) -> None:
    inputs = unet_inputs(stack)
    for cut, full in zip(wrap(stack, "unet_taps")(*inputs), wrap(stack, "unet")(*inputs)[1:], strict=True):
        assert torch.equal(cut, full)


def test_the_unets_own_processors_come_back_after_an_error(stack: ModelStack) -> None:
    before = dict(stack.unet.attn_processors)
    with pytest.raises(RuntimeError, match="inside"), tapped(stack.unet, stack.spec.diffusion):
        raise RuntimeError("inside")
    assert dict(stack.unet.attn_processors) == before


def test_a_tapped_layer_the_unet_lacks_is_named(stack: ModelStack) -> None:
    spec = dataclasses.replace(stack.spec.diffusion, tapped_layers=("down_blocks.9.attentions.0",))
    with pytest.raises(InputError, match=r"down_blocks\.9"), tapped(stack.unet, spec):
        pass


@torch.no_grad()
def test_sam_encoder_is_the_image_encoder(stack: ModelStack) -> None:
    side = stack.spec.sam.image_size
    image = draw(1, 3, side, side)
    assert_same(wrap(stack, "sam_encoder")(image), stack.sam.image_encoder(image))


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({}, id="windows and whole"),
        pytest.param({"window_size": 3}, id="windows that the picture does not fill"),
        pytest.param({"window_size": 0, "global_blocks": (0, 1)}, id="no windows"),
        pytest.param({"absolute_positions": False}, id="relative positions alone"),
    ],
)
@torch.no_grad()
def test_a_fusible_image_encoder_is_the_original(sizes: dict[str, Any]) -> None:
    small = {"width": 24, "depth": 2, "heads": 3, "mlp_dim": 32, "global_blocks": (1,), "window_size": 4}
    wanted = SamSizes(**{**small, "image_size": 128, "embed_channels": 16, **sizes})
    original = random_module(lambda: build_sam(wanted), seed=0, name="sam").eval().image_encoder
    assert all(block.attn.rel_pos_h.abs().sum() > 0 for block in original.blocks)
    image = draw(1, 3, 128, 128)
    assert_same(FusibleImageEncoder(original)(image), original(image))


@torch.no_grad()
def test_a_fusible_image_encoder_takes_attentions_without_positions(stack: ModelStack) -> None:
    original = copy.deepcopy(stack.sam.image_encoder)
    for block in original.blocks:
        block.attn.use_rel_pos = False
    side = stack.spec.sam.image_size
    image = draw(1, 3, side, side)
    assert_same(FusibleImageEncoder(original)(image), original(image))


@pytest.mark.parametrize(
    ("windows", "strides"),
    [
        pytest.param((3, 5), (2, 1), id="windows that the image does not fill"),
        pytest.param((4, 8), (2, 1), id="windows that it fills, and one window"),
    ],
)
@torch.no_grad()
def test_a_rewritten_tiny_vit_is_the_original(windows: tuple[int, ...], strides: tuple[int, ...]) -> None:
    sizes = TinyVitSizes(
        widths=(8, 16, 24),
        depths=(1, 1, 2),
        heads=(2, 3),
        windows=windows,
        strides=strides,
        embed_channels=12,
    )
    original = with_drawn_norms(random_module(lambda: TinyVitEncoder(sizes), seed=0, name="sam"))
    image = draw(1, 3, 64, 64)
    expected = original(image)
    assert expected.shape == (1, 12, 8, 8)
    assert_same(rewrite_small_encoder(original)(image), expected)
    assert torch.equal(original(image), expected)


@pytest.mark.parametrize(
    "widths", [pytest.param((8, 8, 16, 16, 32), id="L"), pytest.param((8, 8, 8, 16, 32, 32), id="XL")]
)
@torch.no_grad()
def test_a_rewritten_efficient_vit_is_the_original(widths: tuple[int, ...]) -> None:
    published = efficient_vit_sizes((1,) * len(widths), neck_depth=1)
    sizes = replace(published, widths=widths, image_size=128, embed_size=8, embed_channels=12)
    original = with_drawn_norms(random_module(lambda: EfficientVitEncoder(sizes), seed=0, name="sam"))
    image = draw(1, 3, 128, 128)
    expected = original(image)
    assert expected.shape == (1, 12, 8, 8)
    assert_same(rewrite_small_encoder(original)(image), expected)
    assert torch.equal(original(image), expected)


def with_drawn_norms(module: Any) -> Any:
    """The module with random numbers where those of a fresh one are all alike."""
    for name, tensor in (*module.named_buffers(), *module.named_parameters()):
        if "running_" in name or ".bn." in name or ".norm." in name:
            tensor.copy_(draw(*tensor.shape).abs() + 0.5 if tensor.is_floating_point() else tensor)
        elif name.endswith("attention_biases"):
            tensor.copy_(draw(*tensor.shape))
    return module


def test_an_image_encoder_of_another_architecture_is_left_as_it_is(stack: ModelStack) -> None:
    sam = copy.copy(stack.sam)
    sam._modules = {**stack.sam._modules, "image_encoder": torch.nn.Conv2d(3, 4, 16, stride=16)}
    image = draw(1, 3, 32, 32)
    assert torch.equal(SamEncoder(sam)(image), sam.image_encoder(image))


@torch.no_grad()
@pytest.mark.parametrize("prompts", [64, 1])
@pytest.mark.parametrize("boxed", [False, True])
def test_sam_decoder_and_masks_equal_the_mask_decoder(stack: ModelStack, prompts: int, boxed: bool) -> None:
    spec = stack.spec.sam
    embedding = draw(1, spec.embed_channels, spec.embed_size, spec.embed_size)
    places = torch.rand((prompts, 6), generator=torch.Generator().manual_seed(2)) * spec.image_size
    points = (places[:, None, :2], torch.ones(prompts, 1, dtype=torch.int))
    sparse, dense = stack.sam.prompt_encoder(
        points=points, boxes=places[:, 2:] if boxed else None, masks=None
    )
    assert sparse.shape[1] == (3 if boxed else 2)
    masks, iou = stack.sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=stack.sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    got_iou, tokens, features = wrap(stack, "sam_decoder")(embedding, sparse)
    assert_same(got_iou, iou)
    drawn = wrap(stack, "sam_masks")
    assert_same(drawn(features, tokens, torch.arange(prompts, dtype=torch.int32)), masks)
    chosen = torch.tensor([7, 3, 63, 3], dtype=torch.int32) % prompts
    assert_same(drawn(features, tokens, chosen), masks[chosen.long()])


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 3])
def test_the_rearranged_transformer_equals_the_original_at_any_depth(depth: int) -> None:
    torch.manual_seed(4)
    original = TwoWayTransformer(depth=depth, embedding_dim=24, num_heads=3, mlp_dim=16).eval()
    for weights in original.parameters():  # biases are drawn too, else one left out would not be seen
        weights.normal_(std=0.4)
    image, positions, prompts = draw(1, 24, 5, 4), draw(1, 24, 5, 4, seed=1), draw(6, 3, 24, seed=2)
    expected = original(*(each.expand(6, -1, -1, -1) for each in (image, positions)), prompts)
    got = PromptTransformer(original)(
        *(each.flatten(2).transpose(1, 2) for each in (image, positions)), prompts
    )
    for ours, theirs in zip(got, expected, strict=True):
        assert_same(ours, theirs)


@torch.no_grad()
def test_clip_text_equals_encode_text_with_the_end_index_as_input(stack: ModelStack) -> None:
    ids, end = draw_ids(stack, batch=3)
    assert_same(wrap(stack, "clip_text")(ids, end), stack.clip.encode_text(ids.long()))


def patches_of(stack: ModelStack, image: torch.Tensor) -> torch.Tensor:
    size = stack.spec.clip.patch_size
    return torch.nn.functional.unfold(image, size, stride=size).transpose(1, 2)  # channel, row, column


@torch.no_grad()
def test_clip_image_with_one_slot_and_no_mask_equals_encode_image(stack: ModelStack) -> None:
    clip = stack.spec.clip
    image = draw(2, 3, clip.image_size, clip.image_size)
    tokens = clip.grid**2 + 1
    positions = torch.from_numpy(clip_positions(stack)).expand(2, -1, -1)
    got = wrap(stack, "clip_image")(
        patches_of(stack, image), positions, torch.zeros(2, 1, 1), torch.zeros(2, tokens, tokens)
    )
    assert_same(got[:, 0], stack.clip.encode_image(image))


@torch.no_grad()
def test_a_masked_class_token_sees_its_own_patches_only(stack: ModelStack) -> None:
    clip = stack.spec.clip
    image = draw(1, 3, clip.image_size, clip.image_size)
    patches, count = patches_of(stack, image), clip.grid**2
    tokens = 2 + count
    mask = torch.full((1, tokens, tokens), BLOCKED)
    mask[:, 2:, 2:] = 0.0  # patches see patches
    mask[:, 0, 0] = mask[:, 1, 1] = 0.0
    mask[:, 0, 2:] = 0.0  # the first class token sees every patch, the second none
    wrapper, positions = wrap(stack, "clip_image"), torch.from_numpy(clip_positions(stack))[None]
    both = wrapper(patches, positions, torch.zeros(1, 2, 1), mask)

    # Alone, with patches that do not see the class token either: the others cannot have mattered.
    alone = wrapper(
        patches, positions, torch.zeros(1, 1, 1), mask[:, [0, *range(2, tokens)]][..., [0, *range(2, tokens)]]
    )
    other = wrapper(draw(1, count, patches.shape[2], seed=9), positions, torch.zeros(1, 2, 1), mask)
    assert_same(both[:, 0], alone[:, 0])
    assert_same(both[:, 1], other[:, 1])
    assert (both[:, 0] - other[:, 0]).abs().max() > 1e-3


@torch.no_grad()
def test_each_picture_of_a_batch_has_its_own_positions(stack: ModelStack) -> None:
    clip, wrapper = stack.spec.clip, wrap(stack, "clip_image")
    patches = patches_of(stack, draw(2, 3, clip.image_size, clip.image_size))
    positions, slots = draw(2, clip.grid**2, clip.width, seed=4), torch.zeros(2, 1, 1)
    mask = torch.zeros(2, clip.grid**2 + 1, clip.grid**2 + 1)
    both = wrapper(patches, positions, slots, mask)
    for i in range(2):
        one = slice(i, i + 1)
        assert_same(both[one], wrapper(patches[one], positions[one], slots[one], mask[one]))
    assert (both - wrapper(patches, positions.flip(0), slots, mask)).abs().max() > 1e-3
