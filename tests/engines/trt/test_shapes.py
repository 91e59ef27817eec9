"""What plans are built for is what the pipeline feeds."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.contracts.graphs import GRAPHS, graph_contract
from refdiff.contracts.options import options_for
from refdiff.engines.factory import open_sessions
from refdiff.engines.trt.shapes import ShapeRange, shape_profiles
from refdiff.errors import InputError
from refdiff.loading import segmenter_of
from refdiff.miniature.scenes import render_scene
from refdiff.runtime.clip_inputs import MAX_PAIRS, MAX_PATCHES, class_bucket, images_per_call, patch_bucket
from tests.support.plans import MINIATURE, fitting_profile, holds

SPEC = MINIATURE.spec
VIT_B_16 = dataclasses.replace(
    SPEC, clip=dataclasses.replace(SPEC.clip, image_size=224, patch_size=16, width=768, embed_dim=512)
)


def profiles(graph, *names, spec=SPEC):
    return shape_profiles(graph_contract(spec)[graph], spec, [options_for(spec, variant=n) for n in names])


class Spy:
    """Keeps the shapes every session is fed."""

    def __init__(self, inner):
        self._inner = inner
        self.seen = []

    def open(self, name):
        session, seen = self._inner.open(name), self.seen

        class Watched:
            graph, max_batch = session.graph, session.max_batch

            def run(self, feeds, outputs=None, *, keep_on_device=False):
                seen.append((name, {key: array.shape for key, array in feeds.items()}))
                return session.run(feeds, outputs, keep_on_device=keep_on_device)

            def close(self):
                session.close()

        return Watched()

    def close(self):
        self._inner.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edge", "official"])
def test_everything_the_pipeline_feeds_fits_a_profile(name):
    pytest.importorskip("onnxruntime")
    options = options_for(SPEC, variant=name)
    few = dataclasses.replace(options.proposals, points_per_side=8)  # as many sizes, fewer calls
    options = dataclasses.replace(options, proposals=few)
    spy = Spy(open_sessions(MINIATURE))
    with segmenter_of(MINIATURE, spy, options) as segmenter:
        encoded = segmenter.encode(render_scene(1_000_003).image)
        segmenter.segment(encoded, "the mug left of the blue book")
    assert {graph for graph, _ in spy.seen} >= {"sd_text", "unet_taps", "clip_text", "clip_image"}
    for graph, shapes in spy.seen:
        assert fitting_profile(profiles(graph, name), shapes) is not None, (graph, shapes)


def test_the_golden_record_fits_what_edge_is_built_for():
    for graph, (feeds, _) in MINIATURE.golden().items():
        shapes = {key: array.shape for key, array in feeds.items()}
        assert fitting_profile(profiles(graph, "edge"), shapes) is not None, graph


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("spec", [SPEC, VIT_B_16], ids=["miniature", "ViT-B/16"])
def test_the_usual_size_lies_between_the_least_and_the_most(graph, spec):
    for profile in profiles(graph, "edge", "official", spec=spec):
        for each in profile.values():
            assert holds(each, each.usual)
            assert holds(each, each.least)


@pytest.mark.parametrize("graph", ["vae_encoder", "sam_encoder", "sd_text"])
def test_a_graph_that_is_always_fed_one_size_has_one(graph):
    (profile,) = profiles(graph, "edge", "official")
    assert all(each.least == each.usual == each.most for each in profile.values())


def test_sams_decoder_has_the_automatic_modes_one_size_and_a_range_for_other_prompts():
    automatic, own = (each["prompts"] for each in profiles("sam_decoder", "edge", "official"))
    c = SPEC.sam.embed_channels
    assert automatic.least == automatic.usual == automatic.most == (64, 2, c)
    assert (own.least, own.most) == ((1, 2, c), (16, 16, c))


def clip_feed(pictures, patches, classes, clip=VIT_B_16.clip):
    tokens = patches + classes
    return {
        "patches": (pictures, patches, 3 * clip.patch_size**2),
        "positions": (pictures, patches, clip.width),
        "slots": (pictures, classes, 1),
        "mask": (pictures, tokens, tokens),
    }


@given(st.integers(1, MAX_PATCHES), st.integers(1, 10))
def test_official_takes_crops_of_every_shape_and_number(patches, crops):
    padded = patch_bucket(VIT_B_16.clip, patches)
    feed = clip_feed(min(crops, images_per_call(1 + padded)), padded, 1)
    assert fitting_profile(profiles("clip_image", "official", spec=VIT_B_16), feed) is not None


@given(st.integers(1, 32), st.integers(1, 32), st.integers(1, 20))
def test_edge_takes_every_picture_of_its_long_side_and_every_number_of_candidates(rows, columns, found):
    feed = clip_feed(1, patch_bucket(VIT_B_16.clip, rows * columns), class_bucket(found))
    assert fitting_profile(profiles("clip_image", "edge", spec=VIT_B_16), feed) is not None


@pytest.mark.parametrize("name", ["edge", "official"])
def test_no_profile_of_several_pictures_asks_for_more_pairs_than_a_call_may_have(name):
    for profile in profiles("clip_image", name, spec=VIT_B_16):
        pictures, tokens, _ = profile["mask"].most
        assert pictures == 1 or pictures * tokens**2 <= MAX_PAIRS


def test_a_size_outside_fits_no_profile():
    shapes = {"latent": (3, 4, 32, 32), "timestep": (3,), "context": (3, 77, 128)}
    assert fitting_profile(profiles("unet", "edge"), shapes) is None
    assert not holds(ShapeRange(least=(1, 2), usual=(1, 2), most=(1, 2)), (1,))


def test_two_profiles_of_the_pipeline_share_what_they_can():
    both = profiles("clip_image", "edge", "official", spec=VIT_B_16)
    assert len(both) == len(profiles("clip_image", "edge", spec=VIT_B_16)) + len(
        profiles("clip_image", "official", spec=VIT_B_16)
    )
    (unet,) = profiles("unet_taps", "edge", "official")
    assert unet["latent"].usual[0] == 2
    assert profiles("unet_taps", "edge")[0]["latent"].usual[0] == 1


def test_no_profile_is_misuse():
    with pytest.raises(InputError, match="edge or official"):
        profiles("unet")
