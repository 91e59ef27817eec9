"""Many phrases on one picture: the answers of one at a time, for less work."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

import refdiff
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import MODES, options_for
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
    with refdiff.load("mini", backend="ort-cpu") as segmenter:
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


class _WatchedSession:
    def __init__(self, name, inner, watched):
        self.graph, self.max_batch = inner.graph, watched.max_batch
        self._name, self._inner, self._watched = name, inner, watched

    def run(self, feeds, outputs=None, *, keep_on_device=False):
        rows = len(next(iter(feeds.values())))
        if self._name in ("sd_text", "clip_text", "unet", "unet_taps") and self.max_batch is not None:
            assert rows <= self.max_batch, f"{self._name} was fed {rows} rows"
        self._watched.fed.append((self._name, rows))
        return self._inner.run(feeds, outputs, keep_on_device=keep_on_device)

    def close(self):
        self._inner.close()


def _watched(variant="edge", mode="full", max_batch=None):
    bundle, sessions = find_bundle("mini"), Watched(max_batch)
    return sessions, segmenter_of(bundle, sessions, options_for(bundle.spec, variant=variant, mode=mode))


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


@pytest.mark.parametrize(("variant", "mode"), [*(("edge", mode) for mode in MODES), ("official", "full")])
def test_many_phrases_get_the_answers_of_one_at_a_time(image, variant, mode):
    with refdiff.load("mini", backend="ort-cpu", variant=variant, mode=mode) as segmenter:
        scene = segmenter.encode(image)
        alone = [segmenter.segment(scene, phrase) for phrase in PHRASES]
        for rows in (1, 2, 5):
            together = segmenter.segment_many(scene, PHRASES, batch_size=rows)
            assert len(together) == len(PHRASES)
            for got, expected in zip(together, alone, strict=True):
                _assert_same(got, expected)


def test_an_equal_phrase_is_computed_once_and_answered_each_time(image, edge):
    answers = edge.segment_many(edge.encode(image), ["mug", "book", "mug"])
    assert answers[0] is answers[2]
    assert [each.phrase for each in answers] == ["mug", "book", "mug"]


def test_no_phrase_is_no_answer(image, edge):
    assert edge.segment_many(edge.encode(image), []) == ()


def test_text_work_is_done_once_for_all_phrases_and_image_work_not_at_all(image):
    sessions, segmenter = _watched()
    scene = segmenter.encode(image)
    sessions.fed.clear()
    phrases = [f"the {colour} mug" for colour in ("red", "blue", "green", "white", "black")]
    segmenter.segment_many(scene, phrases)
    assert sessions.rows("sd_text") == {5: 1}
    assert sessions.rows("clip_text") == {6: 1}, "five phrases and their one head word"
    assert sessions.rows("unet_taps") == {2: 2, 1: 1}
    for graph in ("vae_encoder", "sam_encoder", "sam_decoder"):
        assert not sessions.rows(graph)


def test_a_guided_pass_takes_both_branches_of_a_phrase_in_one_call(image):
    sessions, segmenter = _watched("official", "gen")
    scene = segmenter.encode(image)
    sessions.fed.clear()
    segmenter.segment_many(scene, PHRASES[:3])
    assert sessions.rows("unet") == {2: 1, 1: 1}
    assert sessions.rows("unet_taps") == {2: 3}


@pytest.mark.parametrize(
    ("variant", "mode", "max_batch"),
    [("edge", "full", 1), ("edge", "full", 3), ("official", "gen", 1), ("official", "gen", 3)],
)
def test_a_session_is_never_fed_more_than_it_takes(image, variant, mode, max_batch):
    sessions, segmenter = _watched(variant, mode, max_batch)
    answers = segmenter.segment_many(segmenter.encode(image), PHRASES, batch_size=8)
    assert sessions.fed
    assert all(each.index is not None for each in answers)


def test_more_phrases_than_share_their_text_work_are_all_answered(image, edge):
    phrases = [f"the mug number {letter}" for letter in "abcdefghijklmnopqrs"]
    assert len(phrases) > TEXT_ROWS
    scene = edge.encode(image)
    together = edge.segment_many(scene, phrases)
    assert [each.phrase for each in together] == phrases
    _assert_same(together[-1], edge.segment(scene, phrases[-1]))


def test_a_phrase_that_cannot_be_used_is_named_before_any_graph_runs(image):
    sessions, segmenter = _watched(mode="gen")
    scene = segmenter.encode(image)
    sessions.fed.clear()
    with pytest.raises(InputError, match=r"phrase 2 of 3, '42': .*English"):
        segmenter.segment_many(scene, ["mug", "42", "book"])
    with pytest.raises(InputError, match=r"phrase 3 of 3, .*shorten it"):
        segmenter.segment_each(scene, ["mug", "book", "mug " * 90])
    assert not sessions.fed


def test_no_row_is_refused(image, edge):
    with pytest.raises(InputError, match="got 0 rows"):
        edge.segment_many(edge.encode(image), ["mug"], batch_size=0)


def test_each_answer_is_computed_when_it_is_taken(image):
    sessions, segmenter = _watched(mode="gen")
    scene = segmenter.encode(image)
    answers = segmenter.segment_each(scene, PHRASES)
    before = len(sessions.fed)
    next(answers)
    assert len(sessions.fed) > before
