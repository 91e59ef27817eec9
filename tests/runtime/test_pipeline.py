import dataclasses

import numpy as np
import pytest

from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.options import MODES, VARIANTS
from refdiff.errors import EngineError, InputError
from refdiff.runtime.clip_inputs import CLASS_BUCKETS, patch_buckets
from refdiff.runtime.phrase import parse_phrase
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.segmentation import NOT_CALIBRATED
from tests.support.fake_pipeline import (
    SIZE,
    SPEC,
    FakeFactory,
    fake_branch,
    fake_image,
    fake_options,
    fake_segmenter,
    fake_tokenizer,
)
from tests.support.prompts import readable_vectors


@pytest.mark.parametrize("variant", ["official", "edge"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_answers_with_a_mask_of_the_image(variant, mode):
    with fake_segmenter(variant, mode) as segmenter:
        encoded = segmenter.encode(fake_image())
        result = segmenter.segment(encoded, "the red mug left of the plate")
    assert result.mask.shape == SIZE
    assert result.mask.any()
    assert np.array_equal(result.mask, result.candidates.masks[result.index])
    assert result.score == result.scores.total[result.index] == result.scores.total.max()
    assert result.root == "mug"
    assert result.reason is None
    assert (result.heat is None) == (mode == "disc+seg")


@pytest.mark.parametrize(
    ("mode", "unused"),
    [
        ("gen", {"sam_encoder", "sam_decoder", "sam_masks", "clip_text", "clip_image"}),
        ("gen+seg", {"clip_text", "clip_image"}),
        ("disc+seg", {"sd_text", "vae_encoder", "unet", "unet_taps"}),
        ("full", set()),
    ],
)
def test_a_mode_never_opens_a_graph_it_does_not_need(mode, unused):
    factory = FakeFactory()
    segmenter = fake_segmenter("official", mode, factory)
    segmenter.segment(segmenter.encode(fake_image()), "the mug")
    assert set(graph_contract(SPEC)) - {name for name, _ in factory.log} == unused


def test_a_second_phrase_on_an_image_costs_no_image_work_again():
    factory = FakeFactory()
    segmenter = fake_segmenter(factory=factory)
    encoded = segmenter.encode(fake_image())
    segmenter.segment(encoded, "the red mug")
    image_work = ("vae_encoder", "sam_encoder", "sam_decoder", "sam_masks", "clip_image")
    before = {name: factory.ran(name) for name in image_work}
    segmenter.segment(encoded, "the blue mug")
    assert {name: factory.ran(name) for name in before} == before


def test_crops_are_computed_once_for_each_direction():
    factory = FakeFactory()
    segmenter = fake_segmenter("edge", factory=factory)  # letterboxed: all crops of a direction in one call
    encoded = segmenter.encode(fake_image())
    assert factory.ran("clip_image") == 1
    for phrase, calls in [("mug", 2), ("mug on the left", 3), ("left mug", 3), ("right mug", 4), ("cup", 4)]:
        segmenter.segment(encoded, phrase)
        assert factory.ran("clip_image") == calls


def test_the_same_phrase_gives_the_same_answer_whatever_was_asked_before():
    segmenter = fake_segmenter()
    encoded = segmenter.encode(fake_image())
    segmenter.segment(encoded, "the mug on the right")
    first = segmenter.segment(encoded, "the mug on the left")
    fresh = segmenter.segment(segmenter.encode(fake_image()), "the mug on the left")
    assert np.array_equal(first.scores.total, fresh.scores.total)


def test_only_kept_candidates_reach_clip():
    factory = FakeFactory()
    segmenter = fake_segmenter("official", "disc+seg", factory)
    encoded = segmenter.encode(fake_image())
    kept = int(encoded.candidates.kept.sum())
    assert kept == 10 < len(encoded.candidates)
    assert factory.log[-1][1]["slots"] == (1, 16, 1)  # the bucket of ten
    result = segmenter.segment(encoded, "the mug")
    assert not result.scores.hard[~encoded.candidates.kept].any()
    assert not result.scores.soft[~encoded.candidates.kept].any()


def test_soft_attention_sees_the_image_at_its_own_resolution_or_at_the_limit():
    factory = FakeFactory()
    fake_segmenter("official", "disc+seg", factory).encode(fake_image((50, 95)))
    assert factory.log[-1][1]["positions"] == (1, 96, 6)  # the bucket of 6 * 11 patches
    crops = dataclasses.replace(VARIANTS["official"].crops, soft_long_side=48)
    fake_segmenter("official", "disc+seg", factory, crops=crops).encode(fake_image((50, 95)))
    assert factory.log[-1][1]["positions"] == (1, 24, 6)  # the bucket of 3 * 6 patches


def test_an_encoded_image_keeps_its_own_copy_of_the_pixels():
    image = fake_image()
    segmenter = fake_segmenter()
    encoded = segmenter.encode(image)
    image[:] = 0
    assert encoded.pixels.any()
    with pytest.raises(ValueError, match="read-only"):
        encoded.pixels[:] = 0


def test_an_image_of_other_options_is_refused():
    encoded = fake_segmenter("official").encode(fake_image())
    with pytest.raises(InputError, match="encode the image with it"):
        fake_segmenter("edge").segment(encoded, "the mug")


def _at_peaks(mode="full", factory=None, **changes):
    proposals = dataclasses.replace(VARIANTS["edge"].proposals, **{"peaks": 4, **changes})
    return fake_segmenter("edge", mode, factory, proposals=proposals)


@pytest.mark.parametrize("mode", ["gen+seg", "full"])
def test_with_peaks_each_phrase_has_candidates_of_its_own_from_one_decoder_call(mode):
    factory = FakeFactory()
    segmenter = _at_peaks(mode, factory)
    encoded = segmenter.encode(fake_image())
    assert encoded.candidates is None
    assert (factory.ran("sam_encoder"), factory.ran("sam_decoder")) == (1, 0)
    first, second = (segmenter.segment(encoded, phrase) for phrase in ("the mug", "the plate"))
    assert (factory.ran("sam_encoder"), factory.ran("sam_decoder")) == (1, 2)
    assert not np.array_equal(first.candidates.masks, second.candidates.masks)
    for result in (first, second):
        assert np.array_equal(result.mask, result.candidates.masks[result.index])


def test_with_peaks_a_phrase_is_answered_the_same_whatever_was_asked_before():
    segmenter = _at_peaks()
    encoded = segmenter.encode(fake_image())
    segmenter.segment(encoded, "the mug on the right")
    again = segmenter.segment(encoded, "the mug on the left")
    fresh = segmenter.segment(segmenter.encode(fake_image()), "the mug on the left")
    assert np.array_equal(again.scores.total, fresh.scores.total)
    assert np.array_equal(again.mask, fresh.mask)


def test_peaks_without_a_map_are_refused():
    with pytest.raises(InputError, match="no heatmap with peaks"):
        _at_peaks("disc+seg")


def test_negative_points_are_tokens_of_every_prompt():
    factory = FakeFactory()
    segmenter = _at_peaks(factory=factory, negatives=3)
    segmenter.segment(fake_image(), "the mug")
    fed = [shapes["prompts"] for graph, shapes in factory.log if graph == "sam_decoder"]
    assert {(tokens, channels) for _, tokens, channels in fed} == {(5, 8)}
    assert all(prompts <= 16 for prompts, _, _ in fed)


@pytest.mark.parametrize("changes", [{"negatives": 2, "peaks": 0}, {"negatives": 15}, {"negatives": -1}])
def test_negative_points_without_peaks_or_too_many_are_refused(changes):
    with pytest.raises(InputError, match="negative points"):
        _at_peaks(**changes)


def _wary():
    crops = dataclasses.replace(VARIANTS["official"].crops, negative=0.5)
    return fake_segmenter("official", "disc+seg", crops=crops)


def test_what_looks_like_the_phrases_other_nouns_scores_less():
    phrase, segmenter = "guy with the hat and the dog", _wary()
    encoded = segmenter.encode(fake_image())
    scores = segmenter.segment(encoded, phrase).scores
    # The fake text tower answers a batch as a whole, so the same batch is asked here.
    whole, root, hat, dog = fake_branch(FakeFactory()).text_vectors([phrase, "guy", "hat", "dog"])
    soft = encoded.views.soft
    wanted = soft @ (0.5 * (whole + root)) - 0.5 * (soft @ hat + soft @ dog) / 2
    np.testing.assert_allclose(scores.soft, wanted, atol=1e-6)
    (hard,) = encoded.views.hard.values()
    wanted = hard @ whole - 0.5 * (hard @ hat + hard @ dog) / 2
    np.testing.assert_allclose(scores.hard, wanted, atol=1e-6)


def test_a_phrase_of_one_thing_has_nothing_to_be_unlike():
    plain, wary = fake_segmenter("official", "disc+seg"), _wary()
    scores = [each.segment(each.encode(fake_image()), "the red mug").scores.total for each in (plain, wary)]
    assert parse_phrase("the red mug").others == ()
    assert np.array_equal(*scores)


def test_nothing_kept_is_no_match_with_a_reason_on_edge_and_the_first_mask_officially():
    all_out = {"min_area_px": 10**9}
    edge = dataclasses.replace(VARIANTS["edge"].proposals, **all_out)
    segmenter = fake_segmenter("edge", proposals=edge)
    result = segmenter.segment(segmenter.encode(fake_image()), "the mug on the left of the plate")
    assert result.index is None
    assert not result.mask.any()
    assert result.reason == "no proposal passes the filters"
    assert result.cautions == ()
    official = dataclasses.replace(VARIANTS["official"].proposals, **all_out)
    segmenter = fake_segmenter("official", proposals=official)
    assert segmenter.segment(segmenter.encode(fake_image()), "the mug").index == 0


def test_a_mask_carries_the_bundles_cautions_and_that_no_confidence_exists():
    segmenter = fake_segmenter(cautions=("random weights: the mask means nothing",))
    result = segmenter.segment(segmenter.encode(fake_image()), "the mug")
    assert result.cautions == ("random weights: the mask means nothing", NOT_CALIBRATED)
    assert result.confidence is None
    assert np.array_equal(result.image, fake_image())


def test_an_image_without_proposals_is_one_candidate():
    proposals = dataclasses.replace(VARIANTS["official"].proposals, pred_iou_threshold=0.99)
    segmenter = fake_segmenter(proposals=proposals)
    result = segmenter.segment(segmenter.encode(fake_image()), "the mug")
    assert len(result.candidates) == 1
    assert result.mask.all()


def test_the_paper_variant_is_refused_with_the_alternatives():
    with pytest.raises(InputError, match="use --variant official or edge, or the torch reference"):
        fake_segmenter("paper")


def test_a_position_table_of_another_model_is_refused():
    with pytest.raises(InputError, match=r"shape \(196, 6\), expected \(16, 6\)"):
        Segmenter(
            sessions=FakeFactory(),
            spec=SPEC,
            options=fake_options(),
            tokenizer=fake_tokenizer(),
            positions=np.zeros((196, 6), np.float32),
            prompts=readable_vectors(SPEC.sam),
        )


@pytest.mark.parametrize(
    "graph", ["vae_encoder", "unet", "unet_taps", "clip_text", "clip_image", "sam_encoder"]
)
def test_an_engine_that_returns_nan_stops_the_run(graph):
    segmenter = fake_segmenter(factory=FakeFactory(spoil=graph))
    with pytest.raises(EngineError, match="finite"):
        segmenter.segment(segmenter.encode(fake_image()), "the mug")


def test_a_phrase_that_would_be_cut_off_is_refused():
    segmenter = fake_segmenter("official", "disc+seg")
    with pytest.raises(InputError, match="shorten it"):
        segmenter.segment(segmenter.encode(fake_image()), "mug " * 40)


def test_the_sessions_close_with_the_segmenter():
    factory = FakeFactory()
    with fake_segmenter(factory=factory):
        assert factory.closed == 0
    assert factory.closed == 1


def test_a_closed_segmenter_answers_nothing():
    with fake_segmenter() as segmenter:
        encoded = segmenter.encode(fake_image())
        answers = segmenter.segment_each(encoded, ["the mug", "the ball"])
        next(answers)
    calls = (
        lambda: segmenter.encode(fake_image()),
        lambda: segmenter.segment(encoded, "the mug"),
        lambda: segmenter.segment(fake_image(), "the mug"),
        lambda: segmenter.segment_many(encoded, ["the mug"]),
        lambda: next(answers),
    )
    for call in calls:
        with pytest.raises(InputError, match="the segmenter is closed"):
            call()


def test_an_image_is_encoded_where_it_is_asked_about():
    segmenter = fake_segmenter()
    expected = segmenter.segment(segmenter.encode(fake_image()), "the mug")
    assert np.array_equal(segmenter.segment(fake_image(), "the mug").mask, expected.mask)
    assert np.array_equal(segmenter.segment_many(fake_image(), ["the mug"])[0].mask, expected.mask)


@pytest.mark.parametrize(
    ("phrases", "asked"),
    [
        ("the mug", ["the mug"]),
        ((phrase for phrase in ("the mug", "a ball", "the mug")), ["the mug", "a ball", "the mug"]),
        (["the mug"], ["the mug"]),
        ([], []),
    ],
    ids=["one text", "a generator", "a list", "none"],
)
def test_many_phrases_are_one_text_or_any_iterable_of_them(phrases, asked):
    answers = fake_segmenter().segment_many(fake_image(), phrases)
    assert [answer.phrase for answer in answers] == asked


def test_phrases_that_are_no_texts_are_refused():
    with pytest.raises(InputError, match="type int"):
        fake_segmenter().segment_many(fake_image(), 3)
    with pytest.raises(InputError, match="type int"):
        fake_segmenter().segment_many(fake_image(), [3])


class _SessionsOf:
    """CLIP's tower in numpy: one attention block without learnt weights, driven by masks and positions."""

    def open(self, name):
        return self

    def run(self, feeds, outputs=None):
        rng = np.random.default_rng(0)
        to_width, to_embedding = rng.normal(size=(192, 6)) / 14, rng.normal(size=(6, 5))
        patches = feeds["patches"] @ to_width + feeds["positions"]
        classes = np.ones((*feeds["slots"].shape[:2], 6))
        tokens = np.concatenate([classes, patches], axis=1)
        logits = tokens @ tokens.transpose(0, 2, 1) + feeds["mask"]
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        mixed = weights / weights.sum(axis=-1, keepdims=True) @ tokens
        return {"vectors": (mixed[:, : classes.shape[1]] @ to_embedding).astype(np.float32)}


def test_clip_image_runs_at_the_sizes_of_its_buckets_only():
    factory = FakeFactory()
    segmenter = fake_segmenter("official", "disc+seg", factory)
    for size in [SIZE, (90, 48), (64, 64), (35, 200)]:
        segmenter.segment(segmenter.encode(fake_image(size)), "the mug")
    shapes = [shapes for graph, shapes in factory.log if graph == "clip_image"]
    assert {shape["patches"][1] for shape in shapes} <= set(patch_buckets(SPEC.clip))
    assert {shape["slots"][1] for shape in shapes} <= set(CLASS_BUCKETS)


def test_crops_of_unlike_grids_share_a_call():
    encoded = fake_segmenter("official", "disc+seg").encode(fake_image())
    boxes, masks = np.zeros((3, 4), np.int64), np.zeros((3, *SIZE), np.bool_)
    for i, (height, width) in enumerate([(40, 21), (22, 40), (40, 18)]):  # 7x4, 4x7 and 8x4 patches
        boxes[i] = (5, 3, 4 + width, 2 + height)
        masks[i, 3 : 3 + height, 5 : 5 + width] = True
    unlike = dataclasses.replace(
        encoded.candidates,
        masks=masks,
        boxes_xyxy_px=boxes,
        areas_px=masks.sum(axis=(1, 2)),
        predicted_iou=np.ones(3, np.float32),
        kept=np.ones(3, np.bool_),
    )
    factory = FakeFactory()
    fake_branch(factory).hard_vectors(encoded.pixels, unlike, None)
    assert [shapes["patches"] for _, shapes in factory.log] == [(3, 32, 192)]


def test_more_candidates_than_class_tokens_are_read_in_several_calls():
    encoded = fake_segmenter("official", "disc+seg").encode(fake_image())
    repeats = 2 + CLASS_BUCKETS[-1] // len(encoded.candidates)
    index = np.tile(np.arange(len(encoded.candidates)), repeats)
    many = dataclasses.replace(
        encoded.candidates,
        masks=encoded.candidates.masks[index],
        boxes_xyxy_px=encoded.candidates.boxes_xyxy_px[index],
        areas_px=encoded.candidates.areas_px[index],
        predicted_iou=encoded.candidates.predicted_iou[index],
        kept=np.ones(len(index), np.bool_),
    )
    few = dataclasses.replace(encoded.candidates, kept=np.ones(len(encoded.candidates), np.bool_))
    assert len(many) > CLASS_BUCKETS[-1]
    together, alone = (
        fake_branch(_SessionsOf()).soft_vectors(encoded.pixels, candidates) for candidates in (many, few)
    )
    assert np.allclose(together, alone[index], atol=1e-5)


@pytest.mark.parametrize("variant", ["official", "edge"])
def test_a_candidates_vectors_do_not_depend_on_the_other_candidates(variant):
    branch = fake_branch(_SessionsOf(), VARIANTS[variant].crops)
    encoded = fake_segmenter("official", "disc+seg").encode(fake_image())
    alone_kept = np.zeros(len(encoded.candidates), dtype=np.bool_)
    index = int(np.flatnonzero(encoded.candidates.kept)[3])
    alone_kept[index] = True
    alone = dataclasses.replace(encoded.candidates, kept=alone_kept)
    for vectors, ramped in ((branch.hard_vectors, ("left",)), (branch.soft_vectors, ())):
        together = vectors(encoded.pixels, encoded.candidates, *ramped)[index]
        assert np.allclose(together, vectors(encoded.pixels, alone, *ramped)[index], atol=1e-5)
        assert np.isclose(np.linalg.norm(together), 1)


def test_an_image_of_another_bundles_graphs_is_refused():
    encoded = fake_segmenter("edge").encode(fake_image())
    with pytest.raises(InputError, match="another bundle's graphs"):
        fake_segmenter("edge").segment(encoded, "the mug")


def test_an_explicit_focus_moves_the_map_in_edge_too():
    segmenter = fake_segmenter("edge", mode="gen")
    encoded = segmenter.encode(fake_image())
    plain = segmenter.segment(encoded, "the mug of the king")
    said = segmenter.segment(encoded, "the mug of the king", focus="mug")
    assert said.root == "mug"
    assert not np.array_equal(plain.heat, said.heat)


def test_the_papers_ramp_on_the_masked_attention_is_refused():
    paper = dataclasses.replace(VARIANTS["official"].crops, ramp_on_soft=True)
    with pytest.raises(InputError, match="use --variant official or edge"):
        fake_segmenter("official", crops=paper)


@pytest.mark.slow
def test_an_image_of_too_many_patches_is_answered_with_a_caution():
    with fake_segmenter("official", "disc+seg") as segmenter:
        answer = segmenter.segment(segmenter.encode(fake_image((800, 1000))), "the mug")
    assert answer.index is not None
    (large,) = (caution for caution in answer.cautions if caution.startswith("large image: "))
    assert "read it at 808x640 px" in large


@pytest.mark.slow
def test_a_crop_of_too_many_patches_is_shortened_and_its_candidate_named():
    branch, encoded = (
        fake_branch(FakeFactory()),
        fake_segmenter("official", "disc+seg").encode(fake_image((20, 2000))),
    )
    mask = np.zeros((1, 20, 2000), np.bool_)
    mask[0, 7:9] = True
    thin = dataclasses.replace(
        encoded.candidates,
        masks=mask,
        boxes_xyxy_px=np.array([[0, 7, 1999, 8]]),
        areas_px=mask.sum(axis=(1, 2)),
        predicted_iou=np.ones(1, np.float32),
        kept=np.ones(1, np.bool_),
    )
    views = dataclasses.replace(encoded.views, candidates=thin)
    assert np.isfinite(branch.hard_vectors(encoded.pixels, thin, None)).all()
    (caution,) = branch.cautions(views)
    assert caution.startswith("thin candidate: number 0 of 2000x2 px")
