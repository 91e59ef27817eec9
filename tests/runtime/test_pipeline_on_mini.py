"""The pipeline on the built-in bundle: many phrases are answered as one at a time, no work is repeated."""

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

import refdiff
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import MODES, BackendOptions, RunOptions, options_for
from refdiff.engines.factory import open_sessions
from refdiff.errors import InputError
from refdiff.loading import segmenter_of
from refdiff.miniature.scenes import render_scene
from refdiff.runtime.batching import TEXT_ROWS
from refdiff.runtime.pipeline import Segmenter

PHRASES = (
    "the red mug on the left",
    "mug",
    "the small ball right of the book",
    "the book",
    "mug",
    "the largest thing on the right",
)


@pytest.fixture(scope="module")
def image():
    return render_scene(1_000_007).image


@pytest.fixture(scope="module")
def edge() -> Iterator[Segmenter]:
    with refdiff.load("mini", backend=BackendOptions(name="ort-cpu")) as segmenter:
        yield segmenter


class Watched:
    """A factory whose sessions note how many rows they are fed, and take at most some."""

    def __init__(self, max_batch):
        self._inner = open_sessions(find_bundle("mini"), backend="ort-cpu")
        self.max_batch, self.fed = max_batch, []

    def open(self, name):
        return _WatchedSession(name, self._inner.open(name), self)

    def close(self):
        self._inner.close()

    def rows(self, graph):
        return Counter(rows for name, rows in self.fed if name == graph)

    def total_rows(self, graph):
        return sum(rows for name, rows in self.fed if name == graph)


class _WatchedSession:
    def __init__(self, name, inner, watched):
        self.graph, self.max_batch = inner.graph, watched.max_batch
        self._name, self._inner, self._watched = name, inner, watched

    def run(self, feeds, outputs=None, *, keep_on_device=False):
        rows = len(feeds["chosen"] if self._name == "sam_masks" else next(iter(feeds.values())))
        if self._name in ("sd_text", "clip_text", "unet", "unet_taps") and self.max_batch is not None:
            assert rows <= self.max_batch, f"{self._name} was fed {rows} rows"
        self._watched.fed.append((self._name, rows))
        return self._inner.run(feeds, outputs, keep_on_device=keep_on_device)

    def close(self):
        self._inner.close()


def _watched(variant="edge", mode="full", max_batch=None, **changes):
    bundle, sessions = find_bundle("mini"), Watched(max_batch)
    options = dataclasses.replace(options_for(bundle.spec, variant=variant, mode=mode), **changes)
    return sessions, segmenter_of(bundle, sessions, options)


def _proposals(variant, **changes):
    return dataclasses.replace(options_for(find_bundle("mini").spec, variant=variant).proposals, **changes)


def _assert_same(got, expected):
    assert got.phrase == expected.phrase
    assert got.root == expected.root
    assert got.index == expected.index
    assert got.reason == expected.reason
    assert np.array_equal(got.mask, expected.mask)
    np.testing.assert_allclose(got.scores.total, expected.scores.total, atol=2e-5)
    assert (got.heat is None) == (expected.heat is None)
    if got.heat is not None:
        # One level of the map's 8 bits, in `official`.
        np.testing.assert_allclose(got.heat, expected.heat, atol=1 / 255)
        assert np.abs(got.heat - expected.heat).mean() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "mode"), [*(("edge", mode) for mode in MODES), ("official", "full")])
def test_many_phrases_get_the_answers_of_one_at_a_time(image, variant, mode):
    with refdiff.load(
        "mini", options=RunOptions(variant=variant, mode=mode), backend=BackendOptions(name="ort-cpu")
    ) as segmenter:
        encoded = segmenter.encode(image)
        alone = [segmenter.segment(encoded, phrase) for phrase in PHRASES]
        for rows in (1, 2, 5):
            together = segmenter.segment_many(encoded, PHRASES, batch_size=rows)
            assert len(together) == len(PHRASES)
            for got, expected in zip(together, alone, strict=True):
                _assert_same(got, expected)


def test_an_equal_phrase_is_computed_once_and_answered_each_time(image, edge):
    answers = edge.segment_many(edge.encode(image), ["mug", "book", "mug"])
    assert answers[0] is answers[2]
    assert [each.phrase for each in answers] == ["mug", "book", "mug"]


def test_no_phrase_is_no_answer(image, edge):
    assert edge.segment_many(edge.encode(image), []) == ()


@pytest.mark.slow
def test_text_work_is_done_once_for_all_phrases_and_image_work_not_at_all(image):
    sessions, segmenter = _watched()
    encoded = segmenter.encode(image)
    sessions.fed.clear()
    phrases = [f"the {colour} mug" for colour in ("red", "blue", "green", "white", "black")]
    segmenter.segment_many(encoded, phrases)
    assert sessions.rows("sd_text") == {5: 1}
    assert sessions.rows("clip_text") == {6: 1}, "five phrases and their one head word"
    assert sessions.rows("unet_taps") == {2: 2, 1: 1}
    for graph in ("vae_encoder", "sam_encoder", "sam_decoder"):
        assert not sessions.rows(graph)


@pytest.mark.slow
def test_a_guided_pass_takes_both_branches_of_a_phrase_in_one_call(image):
    sessions, segmenter = _watched("official", "gen")
    encoded = segmenter.encode(image)
    sessions.fed.clear()
    segmenter.segment_many(encoded, PHRASES[:3])
    assert sessions.rows("unet") == {2: 1, 1: 1}
    assert sessions.rows("unet_taps") == {2: 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "mode", "max_batch"),
    [("edge", "full", 1), ("edge", "full", 3), ("official", "gen", 1), ("official", "gen", 3)],
)
def test_a_session_is_never_fed_more_than_it_takes(image, variant, mode, max_batch):
    sessions, segmenter = _watched(variant, mode, max_batch)
    answers = segmenter.segment_many(segmenter.encode(image), PHRASES, batch_size=8)
    assert sessions.fed
    assert all(each.index is not None for each in answers)


@pytest.mark.slow
def test_more_phrases_than_share_their_text_work_are_all_answered(image, edge):
    phrases = [f"the mug number {letter}" for letter in "abcdefghijklmnopqrs"]
    assert len(phrases) > TEXT_ROWS
    encoded = edge.encode(image)
    together = edge.segment_many(encoded, phrases)
    assert [each.phrase for each in together] == phrases
    _assert_same(together[-1], edge.segment(encoded, phrases[-1]))


def test_a_phrase_that_cannot_be_used_is_named_before_any_graph_runs(image):
    sessions, segmenter = _watched(mode="gen")
    encoded = segmenter.encode(image)
    sessions.fed.clear()
    with pytest.raises(InputError, match=r"phrase 2 of 3, '#': .*English"):
        segmenter.segment_many(encoded, ["mug", "#", "book"])
    with pytest.raises(InputError, match=r"phrase 3 of 3, .*shorten it"):
        segmenter.segment_each(encoded, ["mug", "book", "mug " * 90])
    assert not sessions.fed


def test_no_row_is_refused(image, edge):
    with pytest.raises(InputError, match="got 0 rows"):
        edge.segment_many(edge.encode(image), ["mug"], batch_size=0)


def test_each_answer_is_computed_when_it_is_taken(image):
    sessions, segmenter = _watched(mode="gen")
    encoded = segmenter.encode(image)
    answers = segmenter.segment_each(encoded, PHRASES)
    before = len(sessions.fed)
    next(answers)
    assert len(sessions.fed) > before


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "tall"), [("official", False), ("edge", True)], ids=["official", "edge"])
@pytest.mark.parametrize("switch", ["cache_texts", "decode_all_prompts"])
def test_an_internal_switch_leaves_the_answer_as_it_is(image, switch, variant, tall):
    image = np.ascontiguousarray(np.rot90(image)) if tall else image
    changes = {
        "cache_texts": {"cache_texts": False},
        "decode_all_prompts": {"proposals": _proposals(variant, decode_all_prompts=True)},
    }[switch]
    answers = []
    for each in ({}, changes):
        _, segmenter = _watched(variant, **each)
        with segmenter:
            encoded = segmenter.encode(image)
            answers.append([segmenter.segment(encoded, phrase) for phrase in PHRASES[:2]])
    for quick, plain in zip(*answers, strict=True):
        assert np.array_equal(quick.candidates.masks, plain.candidates.masks)
        assert np.array_equal(quick.mask, plain.mask)
        assert np.array_equal(quick.scores.total, plain.scores.total)
        assert np.array_equal(quick.heat, plain.heat)


@pytest.mark.slow
def test_no_work_is_done_twice_for_an_image_nor_for_what_cannot_win(image):
    """Three phrases, the last of them again; three candidates pass the area filter."""
    phrases = (*PHRASES[:2], PHRASES[0])
    sessions, segmenter = _watched("official", proposals=_proposals("official", keep_largest=3))
    encoded = segmenter.encode(image)
    for phrase in phrases:
        segmenter.segment(encoded, phrase)
    prompts = options_for(find_bundle("mini").spec, variant="official").proposals.points_per_side ** 2
    assert sessions.total_rows("sam_encoder") == sessions.total_rows("vae_encoder") == 1
    assert 0 < sessions.total_rows("sam_masks") < prompts, "only prompts that pass the predicted-IoU filter"
    assert sessions.rows("unet") == {1: 1 + 3}, "the empty prompt once, then one row for each phrase"
    assert sessions.rows("unet_taps") == {2: 3}, "the last pass stops at the taps"
    assert sessions.total_rows("sd_text") == 1 + 2, "each distinct prompt once"
    assert sessions.total_rows("clip_image") == 1 + 2 * 3, "kept candidates alone, once for each direction"
    assert sum(sessions.rows("clip_image").values()) < 1 + 2 * 3, "crops of one size share a call"


@pytest.mark.slow
def test_without_a_text_cache_an_equal_text_runs_again(image):
    sessions, segmenter = _watched("official", "gen", cache_texts=False)
    encoded = segmenter.encode(image)
    for _ in range(2):
        segmenter.segment(encoded, PHRASES[0])
    assert sessions.total_rows("sd_text") == 1 + 2
