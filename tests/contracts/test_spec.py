"""The sizes of a model, and the outputs that an export may add to its UNet."""

import dataclasses

import pytest

from refdiff.contracts.graphs import TAP_OUTPUTS, graph_contract
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.spec import COARSE_LAYER, ModelSpec
from refdiff.errors import InputError

SPEC = find_bundle("mini").spec


def _with(names: tuple[str, ...]) -> ModelSpec:
    return dataclasses.replace(SPEC, diffusion=SPEC.diffusion.with_maps(names))


def test_a_bundle_without_more_maps_says_nothing_of_them() -> None:
    assert "maps" not in SPEC.to_json()["diffusion"]
    assert graph_contract(SPEC)["unet_taps"].output_names == ("taps",)


def test_more_maps_are_outputs_of_both_graphs_and_read_back() -> None:
    spec = _with(("self", "coarse"))
    assert ModelSpec.from_json(spec.to_json()) == spec
    contract, cells = graph_contract(spec), SPEC.diffusion.tap_size**2
    assert contract["unet"].output_names == ("eps", *TAP_OUTPUTS)
    assert contract["unet_taps"].output_names == TAP_OUTPUTS
    shapes = {each.name: each.shape for each in contract["unet_taps"].outputs}
    assert shapes["coarse_taps"] == ("b", 1, cells // 4, SPEC.context_length)
    assert shapes["self_taps"] == ("b", len(SPEC.diffusion.tapped_layers), cells, cells)


def test_the_cut_comes_after_the_middle_block_where_that_is_read() -> None:
    early = dataclasses.replace(SPEC.diffusion, cut_after="down_blocks.1")
    assert early.with_maps(["coarse"]).cut_after == "mid_block"
    assert early.with_maps(["self"]).cut_after == "down_blocks.1"
    assert SPEC.diffusion.with_maps(["coarse"]).cut_after == SPEC.diffusion.cut_after


def test_maps_that_a_unet_does_not_have_are_refused() -> None:
    with pytest.raises(InputError, match="got the map 'depth', expected coarse or self"):
        SPEC.diffusion.with_maps(["depth"])
    tapped = dataclasses.replace(SPEC.diffusion, tapped_layers=(COARSE_LAYER,))
    with pytest.raises(InputError, match="no level below its taps"):
        tapped.with_maps(["coarse"])
