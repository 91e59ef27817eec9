import dataclasses

import pytest

from refdiff.contracts.options import VARIANTS, RunOptions, check_cores, options_for
from refdiff.contracts.spec import ClipSpec, DiffusionSpec, ModelSpec, SamSpec
from refdiff.errors import InputError

SPEC = ModelSpec(
    name="fake",
    diffusion=DiffusionSpec(
        image_size=64,
        vae_factor=8,
        latent_channels=4,
        scaling_factor=0.2,
        context_width=6,
        tapped_layers=("a", "b"),
        tap_size=4,
        cut_after="up_blocks.1",
    ),
    sam=SamSpec(image_size=64, embed_channels=8, embed_size=4),
    clip=ClipSpec(image_size=224, patch_size=16, width=6, embed_dim=5),
)


@pytest.mark.parametrize(("image_size", "limit"), [(224, 512), (336, 768), (64, 146)])
def test_masked_attention_sees_as_much_of_a_picture_whatever_the_size_of_clip(image_size, limit):
    spec = dataclasses.replace(SPEC, clip=dataclasses.replace(SPEC.clip, image_size=image_size))
    assert options_for(spec, variant="edge").crops.soft_long_side == limit
    assert options_for(spec, variant="official").crops.soft_long_side == 0


def test_the_grid_and_the_thresholds_are_the_models():
    sam = dataclasses.replace(
        SPEC.sam, points_per_side=12, edge_points_per_side=5, edge_pred_iou_threshold=0.4
    )
    spec = dataclasses.replace(SPEC, sam=sam)
    official, edge = (options_for(spec, variant=name).proposals for name in ("official", "edge"))
    assert (official.points_per_side, official.pred_iou_threshold) == (12, sam.pred_iou_threshold)
    assert (edge.points_per_side, edge.pred_iou_threshold) == (5, 0.4)


def test_what_edge_replaces_official_has_as_released():
    official, edge = VARIANTS["official"], VARIANTS["edge"]
    assert (official.attention.guidance, edge.attention.guidance) == (9.0, 1.0)
    assert (official.attention.timesteps, edge.attention.timesteps) == ((51, 1), (51,))
    assert official.fusion.place == official.crops.negative == official.proposals.peaks == 0


def test_the_area_rule_of_a_dataset_is_an_option_of_a_run():
    proposals = RunOptions(variant="official", min_area_px=10_000).pipeline_options(SPEC).proposals
    assert proposals.min_area_px == 10_000
    assert RunOptions(variant="official").pipeline_options(SPEC).proposals.min_area_px == 0
    with pytest.raises(InputError, match="got a minimum area of -1 px, expected 0 or more"):
        RunOptions(min_area_px=-1).pipeline_options(SPEC)


def test_threads_and_processes_are_at_most_the_cores():
    check_cores(1, "threads", cores=4)
    check_cores(4, "threads", cores=4)
    with pytest.raises(InputError, match="got 5 processes, expected 1 to 4, the number of cores; leave"):
        check_cores(5, "processes", cores=4)
