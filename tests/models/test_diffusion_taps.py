"""Where attention is tapped: the layers of the method, whatever blocks a UNet has."""

import dataclasses

import pytest

from refdiff.errors import InputError

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")


from refdiff.models.diffusion import (
    BK_SDM_BASE,
    BK_SDM_SMALL,
    BK_SDM_TINY,
    SD15,
    SD21,
    build_unet,
    diffusion_spec,
)

pytestmark = pytest.mark.needs_torch


@pytest.mark.parametrize(("image_size", "tap_size"), [(512, 16), (768, 24), (1024, 32)])
@pytest.mark.parametrize("configs", [SD15, SD21], ids=["sd15", "sd21"])
def test_the_tapped_layers_are_the_methods(configs, image_size, tap_size):
    spec = diffusion_spec(configs, image_size)
    assert spec.tapped_layers == (
        *(f"down_blocks.2.attentions.{index}" for index in range(2)),
        *(f"up_blocks.1.attentions.{index}" for index in range(3)),
    )
    assert (spec.tap_size, spec.cut_after) == (tap_size, "up_blocks.1")
    assert (spec.latent_size, spec.vae_factor) == (image_size // 8, 8)
    assert (spec.beta_start, spec.beta_end, spec.scaling_factor) == (0.00085, 0.0120, 0.18215)


@pytest.mark.parametrize("image_size", [0, -64, 32, 500, 520])
def test_a_side_at_which_a_level_is_not_whole_is_refused(image_size):
    with pytest.raises(
        InputError, match=f"image size of {image_size} px, expected a positive multiple of 64"
    ):
        diffusion_spec(SD15, image_size)


def with_blocks(down, mid, up):
    unet = {**SD15.unet, "down_block_types": down, "mid_block_type": mid, "up_block_types": up}
    return dataclasses.replace(SD15, unet=unet | {"block_out_channels": (32,) * len(down)})


CROSS = ("CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D")


@pytest.mark.parametrize(
    ("configs", "cut_after", "count"),
    [
        (with_blocks(("DownBlock2D",) * 3, CROSS[1], ("UpBlock2D",) * 3), "mid_block", 1),
        (with_blocks((CROSS[0],) * 3, None, ("UpBlock2D",) * 3), "down_blocks.2", 2),
        (with_blocks((CROSS[0],) * 3, CROSS[1], (CROSS[2],) * 3), "up_blocks.0", 6),
    ],
)
def test_the_last_tapped_block_is_where_the_unet_may_be_cut(configs, cut_after, count):
    spec = diffusion_spec(configs, 128)
    assert (spec.cut_after, len(spec.tapped_layers)) == (cut_after, count)


DOWN, UP = "down_blocks.2.attentions.0", ("up_blocks.1.attentions.0", "up_blocks.1.attentions.1")


@pytest.mark.parametrize(
    ("configs", "layers"),
    [
        (BK_SDM_BASE, (DOWN, *UP)),
        (BK_SDM_SMALL, (DOWN, *UP)),
        (BK_SDM_TINY, (DOWN, "up_blocks.0.attentions.0", "up_blocks.0.attentions.1")),
    ],
)
def test_taps_follow_the_resolution_where_blocks_and_levels_are_missing(configs, layers):
    """BK-SDM's UNets: one layer per level, no middle block, and three levels in the smallest."""
    spec = diffusion_spec(configs, 512)
    assert spec.tapped_layers == layers
    assert (spec.tap_size, spec.cut_after) == (16, layers[-1].partition(".attentions.")[0])
    down = diffusion_spec(configs, 512, taps="down")
    assert (down.tapped_layers, down.cut_after, down.tap_size) == ((DOWN,), "down_blocks.2", 16)
    with torch.device("meta"):
        modules = dict(build_unet(configs).named_modules())
    assert all(f"{layer}.transformer_blocks.0.attn2" in modules for layer in spec.tapped_layers)


def test_the_sizes_of_bk_sdm_are_the_published_ones():
    with torch.device("meta"):
        counts = [
            sum(each.numel() for each in build_unet(configs).parameters())
            for configs in (BK_SDM_BASE, BK_SDM_SMALL, BK_SDM_TINY)
        ]
    assert [round(count / 1e6) for count in counts] == [579, 482, 323]


def test_taps_of_the_way_down_need_a_layer_there():
    up_only = with_blocks(("DownBlock2D",) * 3, None, (CROSS[2],) * 3)
    assert len(diffusion_spec(up_only, 128).tapped_layers) == 3
    with pytest.raises(InputError, match=r"quarter of the latent's side on its way down.*leave out --taps"):
        diffusion_spec(up_only, 128, taps="down")


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_a_unet_without_attention_at_a_quarter_of_the_latent_is_refused(levels):
    down = (CROSS[0],) * 2 + ("DownBlock2D",) * (levels - 2)
    up = ("UpBlock2D",) * (levels - 2) + (CROSS[2],) * 2
    with pytest.raises(InputError, match="no cross-attention at a quarter"):
        diffusion_spec(with_blocks(down, CROSS[1] if levels != 3 else None, up), 512)
