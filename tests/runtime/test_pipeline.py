import dataclasses
import string

import numpy as np
import pytest

from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.options import MODES, VARIANTS, Options
from refdiff.contracts.spec import ClipSpec, DiffusionSpec, ModelSpec, SamSpec
from refdiff.errors import EngineError, InputError
from refdiff.runtime import clip_inputs
from refdiff.runtime.clip_branch import ClipBranch
from refdiff.runtime.clip_inputs import CLASS_BUCKETS, patch_buckets
from refdiff.runtime.phrase import parse_phrase
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.segmentation import NOT_CALIBRATED
from refdiff.runtime.tokenizer import Tokenizer, build_tokenizer_json
from tests.support.prompts import first_places, readable_vectors

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
    clip=ClipSpec(image_size=32, patch_size=8, width=6, embed_dim=5),
)
SIZE = (48, 90)
POSITIONS = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)


class FakeSession:
    """Deterministic arrays in the contract's shapes; SAM's decoder answers with a disk around each point."""

    def __init__(self, graph, log, spoil):
        self.graph, self.max_batch, self._log, self._spoil = graph, None, log, spoil

    def run(self, feeds, outputs=None, *, keep_on_device=False):
        sizes = {}
        assert set(feeds) == set(self.graph.input_names)
        for spec in self.graph.inputs:
            assert feeds[spec.name].dtype == spec.dtype, spec.name
            assert len(feeds[spec.name].shape) == len(spec.shape), spec.name
            for wanted, got in zip(spec.shape, feeds[spec.name].shape, strict=True):
                assert sizes.setdefault(wanted, got) == got, spec.name
                assert got == wanted or isinstance(wanted, str), spec.name
        self._log.append((self.graph.name, {name: feed.shape for name, feed in feeds.items()}))
        if self.graph.name == "sam_decoder":
            return _decoded(first_places(feeds["prompts"], SPEC.sam))
        if self.graph.name == "sam_masks":
            return _disks(feeds["features"][feeds["chosen"], 0, :2])
        if self.graph.name == "clip_image":
            assert sizes["t"] == sizes["c"] + sizes["p"]
        seed = int(sum(np.abs(feed.astype(np.float64)).sum() for feed in feeds.values()) * 1e3) % 2**32
        rng = np.random.default_rng(seed)
        shapes = {o.name: [sizes.get(d, d) for d in o.shape] for o in self.graph.outputs}
        made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        if self.graph.name == self._spoil:
            made = {name: array * np.nan for name, array in made.items()}
        return made

    def close(self):
        pass


def _decoded(points):
    count = len(points)
    iou = np.tile(np.array([0.95, 0.92, 0.5], np.float32), (count, 1)) - np.arange(count)[:, None] / 1000
    features = np.zeros((count, 16, 8), np.float32)  # enough to draw from
    features[:, 0, :2] = points
    return {
        "iou": iou.astype(np.float32),
        "tokens": np.zeros((count, 3, 8), np.float32),
        "features": features,
    }


def _disks(points):
    y, x = np.mgrid[:16, :16] * 4 + 2
    distance = np.hypot(y - points[:, 1, None, None], x - points[:, 0, None, None])
    radii = np.array([6.0, 12.0, 20.0])[None, :, None, None]
    return {"low_res": ((radii - distance[:, None]) * 9).astype(np.float32)}


class FakeFactory:
    def __init__(self, spoil=None):
        self.log, self.closed, self._spoil = [], 0, spoil

    def open(self, name):
        return FakeSession(graph_contract(SPEC)[name], self.log, self._spoil)

    def close(self):
        self.closed += 1

    def ran(self, name):
        return sum(graph == name for graph, _ in self.log)


def _tokenizer():
    letters = [letter + end for letter in string.ascii_lowercase + ",." for end in ("", "</w>")]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters]
    return Tokenizer(build_tokenizer_json({t: i for i, t in enumerate(tokens)}, []), SPEC.context_length)


def _options(variant="official", mode="full", **changes):
    return dataclasses.replace(VARIANTS[variant], mode=mode, **changes)


def _segmenter(variant="official", mode="full", factory=None, cautions=(), **changes):
    return Segmenter(
        sessions=factory or FakeFactory(),
        spec=SPEC,
        options=_options(variant, mode, **changes),
        tokenizer=_tokenizer(),
        positions=POSITIONS,
        prompts=readable_vectors(SPEC.sam),
        cautions=cautions,
    )


def _branch(factory, crops=None):
    """CLIP's branch alone, without the other stages."""
    options = Options(crops=crops or VARIANTS["official"].crops)
    return ClipBranch(factory, SPEC.clip, options, _tokenizer(), POSITIONS)


def _image(size=SIZE):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("variant", ["official", "edge"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_answers_with_a_mask_of_the_image(variant, mode):
    with _segmenter(variant, mode) as segmenter:
        encoded = segmenter.encode(_image())
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
    segmenter = _segmenter("official", mode, factory)
    segmenter.segment(segmenter.encode(_image()), "the mug")
    assert set(graph_contract(SPEC)) - {name for name, _ in factory.log} == unused


def test_a_second_phrase_on_an_image_costs_no_image_work_again():
    factory = FakeFactory()
    segmenter = _segmenter(factory=factory)
    encoded = segmenter.encode(_image())
    segmenter.segment(encoded, "the red mug")
    image_work = ("vae_encoder", "sam_encoder", "sam_decoder", "sam_masks", "clip_image")
    before = {name: factory.ran(name) for name in image_work}
    segmenter.segment(encoded, "the blue mug")
    assert {name: factory.ran(name) for name in before} == before


def test_crops_are_computed_once_for_each_direction():
    factory = FakeFactory()
    segmenter = _segmenter("edge", factory=factory)  # letterboxed: all crops of a direction in one call
    encoded = segmenter.encode(_image())
    assert factory.ran("clip_image") == 1
    for phrase, calls in [("mug", 2), ("mug on the left", 3), ("left mug", 3), ("right mug", 4), ("cup", 4)]:
        segmenter.segment(encoded, phrase)
        assert factory.ran("clip_image") == calls


def test_the_same_phrase_gives_the_same_answer_whatever_was_asked_before():
    segmenter = _segmenter()
    encoded = segmenter.encode(_image())
    segmenter.segment(encoded, "the mug on the right")
    first = segmenter.segment(encoded, "the mug on the left")
    fresh = segmenter.segment(segmenter.encode(_image()), "the mug on the left")
    assert np.array_equal(first.scores.total, fresh.scores.total)


def test_only_kept_candidates_reach_clip():
    factory = FakeFactory()
    segmenter = _segmenter("official", "disc+seg", factory)
    encoded = segmenter.encode(_image())
    kept = int(encoded.candidates.kept.sum())
    assert kept == 10 < len(encoded.candidates)
    assert factory.log[-1][1]["slots"] == (1, 16, 1)  # the bucket of ten
    result = segmenter.segment(encoded, "the mug")
    assert not result.scores.hard[~encoded.candidates.kept].any()
    assert not result.scores.soft[~encoded.candidates.kept].any()


def test_soft_attention_sees_the_image_at_its_own_resolution_or_at_the_limit():
    factory = FakeFactory()
    _segmenter("official", "disc+seg", factory).encode(_image((50, 95)))
    assert factory.log[-1][1]["positions"] == (1, 96, 6)  # the bucket of 6 * 11 patches
    crops = dataclasses.replace(VARIANTS["official"].crops, soft_long_side=48)
    _segmenter("official", "disc+seg", factory, crops=crops).encode(_image((50, 95)))
    assert factory.log[-1][1]["positions"] == (1, 24, 6)  # the bucket of 3 * 6 patches


def test_an_encoded_image_keeps_its_own_copy_of_the_pixels():
    image = _image()
    segmenter = _segmenter()
    encoded = segmenter.encode(image)
    image[:] = 0
    assert encoded.pixels.any()
    with pytest.raises(ValueError, match="read-only"):
        encoded.pixels[:] = 0


def test_an_image_of_other_options_is_refused():
    encoded = _segmenter("official").encode(_image())
    with pytest.raises(InputError, match="encode the image with it"):
        _segmenter("edge").segment(encoded, "the mug")


def _at_peaks(mode="full", factory=None, **changes):
    proposals = dataclasses.replace(VARIANTS["edge"].proposals, **{"peaks": 4, **changes})
    return _segmenter("edge", mode, factory, proposals=proposals)


@pytest.mark.parametrize("mode", ["gen+seg", "full"])
def test_with_peaks_each_phrase_has_candidates_of_its_own_from_one_decoder_call(mode):
    factory = FakeFactory()
    segmenter = _at_peaks(mode, factory)
    encoded = segmenter.encode(_image())
    assert encoded.candidates is None
    assert (factory.ran("sam_encoder"), factory.ran("sam_decoder")) == (1, 0)
    first, second = (segmenter.segment(encoded, phrase) for phrase in ("the mug", "the plate"))
    assert (factory.ran("sam_encoder"), factory.ran("sam_decoder")) == (1, 2)
    assert not np.array_equal(first.candidates.masks, second.candidates.masks)
    for result in (first, second):
        assert np.array_equal(result.mask, result.candidates.masks[result.index])


def test_with_peaks_a_phrase_is_answered_the_same_whatever_was_asked_before():
    segmenter = _at_peaks()
    encoded = segmenter.encode(_image())
    segmenter.segment(encoded, "the mug on the right")
    again = segmenter.segment(encoded, "the mug on the left")
    fresh = segmenter.segment(segmenter.encode(_image()), "the mug on the left")
    assert np.array_equal(again.scores.total, fresh.scores.total)
    assert np.array_equal(again.mask, fresh.mask)


def test_peaks_without_a_map_are_refused():
    with pytest.raises(InputError, match="no heatmap with peaks"):
        _at_peaks("disc+seg")


def test_negative_points_are_tokens_of_every_prompt():
    factory = FakeFactory()
    segmenter = _at_peaks(factory=factory, negatives=3)
    segmenter.segment(_image(), "the mug")
    fed = [shapes["prompts"] for graph, shapes in factory.log if graph == "sam_decoder"]
    assert {(tokens, channels) for _, tokens, channels in fed} == {(5, 8)}
    assert all(prompts <= 16 for prompts, _, _ in fed)


@pytest.mark.parametrize("changes", [{"negatives": 2, "peaks": 0}, {"negatives": 15}, {"negatives": -1}])
def test_negative_points_without_peaks_or_too_many_are_refused(changes):
    with pytest.raises(InputError, match="negative points"):
        _at_peaks(**changes)


def _wary():
    crops = dataclasses.replace(VARIANTS["official"].crops, negative=0.5)
    return _segmenter("official", "disc+seg", crops=crops)


def test_what_looks_like_the_phrases_other_nouns_scores_less():
    phrase, segmenter = "guy with the hat and the dog", _wary()
    encoded = segmenter.encode(_image())
    scores = segmenter.segment(encoded, phrase).scores
    # The fake text tower answers a batch as a whole, so the same batch is asked here.
    whole, root, hat, dog = _branch(FakeFactory()).text_vectors([phrase, "guy", "hat", "dog"])
    soft = encoded.views.soft
    wanted = soft @ (0.5 * (whole + root)) - 0.5 * (soft @ hat + soft @ dog) / 2
    np.testing.assert_allclose(scores.soft, wanted, atol=1e-6)
    (hard,) = encoded.views.hard.values()
    wanted = hard @ whole - 0.5 * (hard @ hat + hard @ dog) / 2
    np.testing.assert_allclose(scores.hard, wanted, atol=1e-6)


def test_a_phrase_of_one_thing_has_nothing_to_be_unlike():
    plain, wary = _segmenter("official", "disc+seg"), _wary()
    scores = [each.segment(each.encode(_image()), "the red mug").scores.total for each in (plain, wary)]
    assert parse_phrase("the red mug").others == ()
    assert np.array_equal(*scores)


def test_nothing_kept_is_no_match_with_a_reason_on_edge_and_the_first_mask_officially():
    all_out = {"min_area_px": 10**9}
    edge = dataclasses.replace(VARIANTS["edge"].proposals, **all_out)
    segmenter = _segmenter("edge", proposals=edge)
    result = segmenter.segment(segmenter.encode(_image()), "the mug on the left of the plate")
    assert result.index is None
    assert not result.mask.any()
    assert result.reason == "no proposal passes the filters"
    assert result.cautions == ()
    official = dataclasses.replace(VARIANTS["official"].proposals, **all_out)
    segmenter = _segmenter("official", proposals=official)
    assert segmenter.segment(segmenter.encode(_image()), "the mug").index == 0


def test_a_mask_carries_the_bundles_cautions_and_that_no_confidence_exists():
    segmenter = _segmenter(cautions=("random weights: the mask means nothing",))
    result = segmenter.segment(segmenter.encode(_image()), "the mug")
    assert result.cautions == ("random weights: the mask means nothing", NOT_CALIBRATED)
    assert result.confidence is None
    assert np.array_equal(result.image, _image())


def test_an_image_without_proposals_is_one_candidate():
    proposals = dataclasses.replace(VARIANTS["official"].proposals, pred_iou_threshold=0.99)
    segmenter = _segmenter(proposals=proposals)
    result = segmenter.segment(segmenter.encode(_image()), "the mug")
    assert len(result.candidates) == 1
    assert result.mask.all()


def test_the_paper_variant_is_refused_with_the_alternatives():
    with pytest.raises(InputError, match="use --variant official or edge, or the torch reference"):
        _segmenter("paper")


def test_a_position_table_of_another_model_is_refused():
    with pytest.raises(InputError, match=r"shape \(196, 6\), expected \(16, 6\)"):
        Segmenter(
            sessions=FakeFactory(),
            spec=SPEC,
            options=_options(),
            tokenizer=_tokenizer(),
            positions=np.zeros((196, 6), np.float32),
            prompts=readable_vectors(SPEC.sam),
        )


@pytest.mark.parametrize(
    "graph", ["vae_encoder", "unet", "unet_taps", "clip_text", "clip_image", "sam_encoder"]
)
def test_an_engine_that_returns_nan_stops_the_run(graph):
    segmenter = _segmenter(factory=FakeFactory(spoil=graph))
    with pytest.raises(EngineError, match="finite"):
        segmenter.segment(segmenter.encode(_image()), "the mug")


def test_a_phrase_that_would_be_cut_off_is_refused():
    segmenter = _segmenter("official", "disc+seg")
    with pytest.raises(InputError, match="shorten it"):
        segmenter.segment(segmenter.encode(_image()), "mug " * 40)


def test_the_sessions_close_with_the_segmenter():
    factory = FakeFactory()
    with _segmenter(factory=factory):
        assert factory.closed == 0
    assert factory.closed == 1


def test_a_closed_segmenter_answers_nothing():
    with _segmenter() as segmenter:
        encoded = segmenter.encode(_image())
        answers = segmenter.segment_each(encoded, ["the mug", "the ball"])
        next(answers)
    calls = (
        lambda: segmenter.encode(_image()),
        lambda: segmenter.segment(encoded, "the mug"),
        lambda: segmenter.segment(_image(), "the mug"),
        lambda: segmenter.segment_many(encoded, ["the mug"]),
        lambda: next(answers),
    )
    for call in calls:
        with pytest.raises(InputError, match="the segmenter is closed"):
            call()


def test_an_image_is_encoded_where_it_is_asked_about():
    segmenter = _segmenter()
    expected = segmenter.segment(segmenter.encode(_image()), "the mug")
    assert np.array_equal(segmenter.segment(_image(), "the mug").mask, expected.mask)
    assert np.array_equal(segmenter.segment_many(_image(), ["the mug"])[0].mask, expected.mask)


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
    answers = _segmenter().segment_many(_image(), phrases)
    assert [answer.phrase for answer in answers] == asked


def test_phrases_that_are_no_texts_are_refused():
    with pytest.raises(InputError, match="type int"):
        _segmenter().segment_many(_image(), 3)
    with pytest.raises(InputError, match="type int"):
        _segmenter().segment_many(_image(), [3])


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
    segmenter = _segmenter("official", "disc+seg", factory)
    for size in [SIZE, (90, 48), (64, 64), (35, 200)]:
        segmenter.segment(segmenter.encode(_image(size)), "the mug")
    shapes = [shapes for graph, shapes in factory.log if graph == "clip_image"]
    assert {shape["patches"][1] for shape in shapes} <= set(patch_buckets(SPEC.clip))
    assert {shape["slots"][1] for shape in shapes} <= set(CLASS_BUCKETS)


def test_crops_of_unlike_grids_share_a_call():
    encoded = _segmenter("official", "disc+seg").encode(_image())
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
    _branch(factory).hard_vectors(encoded.pixels, unlike, None)
    assert [shapes["patches"] for _, shapes in factory.log] == [(3, 32, 192)]


def test_a_batch_of_crops_is_bounded_in_memory(monkeypatch):
    monkeypatch.setattr(clip_inputs, "MAX_PAIRS", 3 * 17**2)
    factory = FakeFactory()
    segmenter = _segmenter("edge", "disc+seg", factory)
    encoded = segmenter.encode(_image())
    before = len(factory.log)
    segmenter.segment(encoded, "the mug")
    batches = [shapes["patches"][0] for graph, shapes in factory.log[before:] if graph == "clip_image"]
    kept = int(encoded.candidates.kept.sum())
    assert batches == [3] * (kept // 3) + [kept % 3] * (kept % 3 > 0)


def test_more_candidates_than_class_tokens_are_read_in_several_calls():
    encoded = _segmenter("official", "disc+seg").encode(_image())
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
        _branch(_SessionsOf()).soft_vectors(encoded.pixels, candidates) for candidates in (many, few)
    )
    assert np.allclose(together, alone[index], atol=1e-5)


@pytest.mark.parametrize("variant", ["official", "edge"])
def test_a_candidates_vectors_do_not_depend_on_the_other_candidates(variant):
    branch = _branch(_SessionsOf(), VARIANTS[variant].crops)
    encoded = _segmenter("official", "disc+seg").encode(_image())
    alone_kept = np.zeros(len(encoded.candidates), dtype=np.bool_)
    index = int(np.flatnonzero(encoded.candidates.kept)[3])
    alone_kept[index] = True
    alone = dataclasses.replace(encoded.candidates, kept=alone_kept)
    for vectors, ramped in ((branch.hard_vectors, ("left",)), (branch.soft_vectors, ())):
        together = vectors(encoded.pixels, encoded.candidates, *ramped)[index]
        assert np.allclose(together, vectors(encoded.pixels, alone, *ramped)[index], atol=1e-5)
        assert np.isclose(np.linalg.norm(together), 1)


def test_an_image_of_another_bundles_graphs_is_refused():
    encoded = _segmenter("edge").encode(_image())
    with pytest.raises(InputError, match="another bundle's graphs"):
        _segmenter("edge").segment(encoded, "the mug")


def test_an_explicit_focus_moves_the_map_in_edge_too():
    segmenter = _segmenter("edge", mode="gen")
    encoded = segmenter.encode(_image())
    plain = segmenter.segment(encoded, "the mug of the king")
    said = segmenter.segment(encoded, "the mug of the king", focus="mug")
    assert said.root == "mug"
    assert not np.array_equal(plain.heat, said.heat)


def test_the_papers_ramp_on_the_masked_attention_is_refused():
    paper = dataclasses.replace(VARIANTS["official"].crops, ramp_on_soft=True)
    with pytest.raises(InputError, match="use --variant official or edge"):
        _segmenter("official", crops=paper)


@pytest.mark.slow
def test_an_image_of_too_many_patches_is_answered_with_a_caution():
    with _segmenter("official", "disc+seg") as segmenter:
        answer = segmenter.segment(segmenter.encode(_image((800, 1000))), "the mug")
    assert answer.index is not None
    (large,) = (caution for caution in answer.cautions if caution.startswith("large image: "))
    assert "read it at 808x640 px" in large


@pytest.mark.slow
def test_a_crop_of_too_many_patches_is_shortened_and_its_candidate_named():
    branch, encoded = _branch(FakeFactory()), _segmenter("official", "disc+seg").encode(_image((20, 2000)))
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
