"""The tapped layers of a Stable Diffusion model, and where its UNet is cut, from its configs.

In: configs and the image's side. Out: a `DiffusionSpec`, or why this model cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from refdiff.contracts.spec import CONTEXT_LENGTH, DiffusionSpec
from refdiff.errors import InputError
from refdiff.models.diffusion.sizes import Config, DiffusionConfigs

TAPPED_LEVEL = 2
"""Halvings of the latent at the tapped layers: a query grid of latent / 4 (METHOD §4.4)."""

CROSS_MID = "UNetMidBlock2DCrossAttn"
CROSS_DOWN = "CrossAttnDownBlock2D"
CROSS_UP = "CrossAttnUpBlock2D"
_KNOWN: Mapping[str, Sequence[str | None]] = {
    "down_block_types": (CROSS_DOWN, "DownBlock2D"),
    "mid_block_type": (CROSS_MID, None),
    "up_block_types": (CROSS_UP, "UpBlock2D"),
}

_EXTRA_INPUTS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)
_OTHER_ATTENTION = ("dual_cross_attention", "only_cross_attention")
_OTHER_LATENTS = ("shift_factor", "latents_mean", "latents_std")


TapPaths = Literal["all", "down"]
"""The tapped layers of the whole UNet, or those of its way down, after which less of it runs."""


def diffusion_spec(
    configs: DiffusionConfigs,
    image_size: int,
    *,
    taps: TapPaths = "all",
    whose: str = "this diffusion model",
) -> DiffusionSpec:
    """Return the sizes that the runtime, the reference and the exporter read.

    Args:
        configs: of the model.
        image_size: side in px of the square image.
        taps: which of the layers at a quarter of the latent's side are tapped.
        whose: the model's name, for messages.

    Raises:
        InputError: the method cannot use such a model, or the side is no multiple of its coarsest cell.
    """
    check_configs(configs, whose)
    factor = 2 ** (len(configs.vae_widths) - 1)
    coarsest = factor * 2 ** (len(configs.unet["block_out_channels"]) - 1)
    if image_size < coarsest or image_size % coarsest:
        raise InputError(
            f"got an image size of {image_size} px, expected a positive multiple of {coarsest}: "
            f"this UNet's coarsest level has one cell per {coarsest} px; use --size "
            f"{max(1, round(image_size / coarsest)) * coarsest}"
        )
    layers = tuple(
        layer for layer in _tapped_layers(configs.unet) if taps == "all" or layer.startswith("down_blocks.")
    )
    if not layers:
        where = " on its way down" if taps == "down" else ""
        advice = "leave out --taps, or use" if taps == "down" else "use"
        raise InputError(
            f"{whose} has no cross-attention at a quarter of the latent's side{where}, expected at least one "
            f"layer to read the attention from; {advice} a UNet of Stable Diffusion 1.x or 2.x"
        )
    return DiffusionSpec(
        image_size=image_size,
        vae_factor=factor,
        latent_channels=configs.vae["latent_channels"],
        scaling_factor=configs.scaling_factor,
        context_width=configs.unet["cross_attention_dim"],
        tapped_layers=layers,
        tap_size=image_size // factor // 2**TAPPED_LEVEL,
        cut_after=layers[-1].partition(".attentions.")[0],
        beta_start=configs.beta_start,
        beta_end=configs.beta_end,
        train_timesteps=configs.train_timesteps,
        prediction=configs.prediction,
        padding=configs.padding,
    )


def check_configs(configs: DiffusionConfigs, whose: str) -> None:
    """Refuse a model that the method does not support.

    Args:
        configs: of the model.
        whose: the model's name, for messages.

    Raises:
        InputError: it needs inputs that the method does not have, or its modules do not fit together.
    """
    for found, advice in _objections(configs):
        raise InputError(f"{whose} {found}; {advice}")


def _objections(configs: DiffusionConfigs) -> Iterator[tuple[str, str]]:
    """Yield what is wrong, and what to do; each check relies on the ones before it."""
    advice = "use a text-to-image model of Stable Diffusion 1.x or 2.x"
    unet, vae, text = configs.unet, configs.vae, configs.text
    yield from _level_objections("UNet", unet)
    yield from _vae_objections(configs)
    for field in (*_EXTRA_INPUTS, *_OTHER_ATTENTION):
        if unet.get(field):
            yield f"has a UNet with {field} = {unet[field]!r} (SDXL, an upscaler?), expected none", advice
    for field in _OTHER_LATENTS:
        if vae.get(field):
            yield f"has a VAE with {field} = {vae[field]!r} (SD 3?), expected none", advice
    yield from _block_objections(unet, advice)
    channels = unet["in_channels"], unet["out_channels"], vae["latent_channels"]
    if len(set(channels)) != 1:
        yield (
            f"has a UNet of {channels[0]} input channels, expected the VAE's {channels[2]} and as many "
            f"outputs (got {channels[1]}): inpainting, depth and upscaling models take a second image",
            advice,
        )
    if text["max_position_embeddings"] != CONTEXT_LENGTH:
        yield (
            f"has a text encoder of {text['max_position_embeddings']} positions, expected {CONTEXT_LENGTH}",
            advice,
        )
    if unet["cross_attention_dim"] != text["hidden_size"]:
        yield (
            f"has a UNet that attends to states of width {unet['cross_attention_dim']}, expected its text "
            f"encoder's {text['hidden_size']}",
            "take all parts from one model",
        )


def _vae_objections(configs: DiffusionConfigs) -> Iterator[tuple[str, str]]:
    if not configs.vae_is_tiny:
        yield from _level_objections("VAE", configs.vae)
    elif len(configs.vae_widths) != len(configs.vae["num_encoder_blocks"]):
        sizes = {field: configs.vae[field] for field in ("encoder_block_out_channels", "num_encoder_blocks")}
        yield f"has a VAE with {sizes}, expected one entry per level in each", "correct its config.json"


def _level_objections(module: str, config: Config) -> Iterator[tuple[str, str]]:
    """Yield a complaint if the fields describe different numbers of levels."""
    blocks = {field: config[field] for field in ("block_out_channels", "down_block_types", "up_block_types")}
    layers = config["layers_per_block"]
    if isinstance(layers, tuple):
        blocks["layers_per_block"] = layers
    counts = [len(value) if isinstance(value, tuple) else 0 for value in blocks.values()]
    if 0 in counts or len(set(counts)) != 1:
        yield f"has a {module} with {blocks}, expected one entry per level in each", "correct its config.json"


def _block_objections(unet: Config, advice: str) -> Iterator[tuple[str, str]]:
    for field, known in _KNOWN.items():
        kinds = unet[field] if isinstance(unet[field], tuple) else (unet[field],)
        for kind in kinds:
            if kind not in known:
                yield f"has a UNet with {field} {kind!r}, expected one of {sorted(map(str, known))}", advice
    depth = unet.get("transformer_layers_per_block", 1)
    if any(layers != 1 for layers in _flat(depth)):
        yield f"has a UNet with {depth} transformer layers per block (SDXL?), expected 1 everywhere", advice


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _tapped_layers(unet: Config) -> Iterator[str]:
    """Yield the cross-attentions on the tapped level's grid, in the UNet's order of execution."""
    levels = len(unet["block_out_channels"])
    if levels <= TAPPED_LEVEL:
        return
    layers = _per_level(unet["layers_per_block"], levels)[TAPPED_LEVEL]
    up = levels - 1 - TAPPED_LEVEL
    if unet["down_block_types"][TAPPED_LEVEL] == CROSS_DOWN:
        yield from (f"down_blocks.{TAPPED_LEVEL}.attentions.{index}" for index in range(layers))
    if up == 0 and unet["mid_block_type"] == CROSS_MID:
        yield "mid_block.attentions.0"
    if unet["up_block_types"][up] == CROSS_UP:
        yield from (f"up_blocks.{up}.attentions.{index}" for index in range(layers + 1))


def _per_level(layers: int | Sequence[int], levels: int) -> Sequence[int]:
    return (layers,) * levels if isinstance(layers, int) else layers
