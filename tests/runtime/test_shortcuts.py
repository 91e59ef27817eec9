"""Each exact shortcut, on and off: the same answer, and less work."""

import dataclasses
from functools import cache

import numpy as np
import pytest

import refdiff
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import ALL_SHORTCUTS, Shortcuts, options_for
from refdiff.contracts.results import Segmentation
from refdiff.data.synthetic import HELD_OUT_FROM, question
from refdiff.engines.factory import open_sessions
from refdiff.errors import InputError
from refdiff.loading import segmenter_of

SWITCHES = tuple(field.name for field in dataclasses.fields(Shortcuts))
NONE = Shortcuts(**dict.fromkeys(SWITCHES, False))
PHRASES = ("the red mug on the left", "star")


@cache
def picture(*, tall: bool) -> np.ndarray:
    """A rendered scene, 160 by 120 px, or standing on its side."""
    asked = next(found for seed in range(HELD_OUT_FROM, HELD_OUT_FROM + 9) if (found := question(seed)))
    assert asked.image.shape[0] < asked.image.shape[1]
    return np.ascontiguousarray(np.rot90(asked.image)) if tall else asked.image


@cache
def answers(variant: str, shortcuts: Shortcuts, *, tall: bool) -> tuple[Segmentation, ...]:
    with refdiff.load("mini", variant=variant, threads=1, shortcuts=shortcuts) as segmenter:
        scene = segmenter.encode(picture(tall=tall))
        return tuple(segmenter.segment(scene, phrase) for phrase in PHRASES)


@pytest.mark.parametrize(("variant", "tall"), [("official", False), ("edge", True)], ids=["official", "edge"])
@pytest.mark.parametrize("switch", [*SWITCHES, "all of them"])
def test_a_shortcut_leaves_the_answer_as_it_is(switch: str, variant: str, tall: bool) -> None:
    off = NONE if switch == "all of them" else dataclasses.replace(ALL_SHORTCUTS, **{switch: False})
    both = answers(variant, ALL_SHORTCUTS, tall=tall), answers(variant, off, tall=tall)
    for quick, plain in zip(*both, strict=True):
        assert np.array_equal(quick.candidates.masks, plain.candidates.masks)
        assert np.array_equal(quick.candidates.kept, plain.candidates.kept)
        assert np.array_equal(quick.mask, plain.mask)
        assert quick.index == plain.index
        assert np.allclose(quick.scores.total, plain.scores.total, atol=1e-5)
        assert np.allclose(
            quick.heat, plain.heat, atol=1e-2 if variant == "official" else 1e-5
        )  # 8-bit steps


class Counting:
    """A session factory that counts runs, and rows of the batch."""

    def __init__(self, inner):
        self._inner = inner
        self.rows = {}
        self.calls = {}

    def open(self, name):
        session, outer = self._inner.open(name), self

        class Counted:
            graph, max_batch = session.graph, session.max_batch

            def run(self, feeds, outputs=None, *, keep_on_device=False):
                batch = len(feeds["chosen"] if name == "sam_masks" else next(iter(feeds.values())))
                outer.rows[name] = outer.rows.get(name, 0) + batch
                outer.calls[name] = outer.calls.get(name, 0) + 1
                return session.run(feeds, outputs, keep_on_device=keep_on_device)

            def close(self):
                session.close()

        return Counted()

    def close(self):
        self._inner.close()


@pytest.mark.parametrize(
    ("switch", "graph", "counted"),
    [
        ("skip_prompts", "sam_masks", "rows"),
        ("filter_candidates", "clip_image", "rows"),
        ("early_exit", "unet", "calls"),
        ("keep_unconditional", "unet", "rows"),
        ("keep_picture", "sam_encoder", "calls"),
        ("keep_texts", "sd_text", "rows"),
        ("batch_crops", "clip_image", "calls"),
    ],
)
def test_a_shortcut_saves_the_work_it_names(switch: str, graph: str, counted: str) -> None:
    bundle = find_bundle("mini")
    spent = {}
    for on in (True, False):
        options = options_for(
            bundle.spec, variant="official", shortcuts=dataclasses.replace(ALL_SHORTCUTS, **{switch: on})
        )
        # Three alone pass the area filter: the miniature's scenes hold about ten things.
        options = dataclasses.replace(
            options, proposals=dataclasses.replace(options.proposals, keep_largest=3)
        )
        counting = Counting(open_sessions(bundle, backend="ort-cpu", threads=1))
        with segmenter_of(bundle, counting, options) as segmenter:
            scene = segmenter.encode(picture(tall=False))
            for phrase in (*PHRASES, PHRASES[0]):
                segmenter.segment(scene, phrase)
        spent[on] = getattr(counting, counted)[graph]
    assert spent[True] < spent[False]


def test_without_keep_unconditional_the_picture_alone_makes_no_pass() -> None:
    bundle = find_bundle("mini")
    off = dataclasses.replace(ALL_SHORTCUTS, keep_unconditional=False)
    counting = Counting(open_sessions(bundle, backend="ort-cpu", threads=1))
    options = options_for(bundle.spec, variant="official", mode="gen", shortcuts=off)
    with segmenter_of(bundle, counting, options) as segmenter:
        scene = segmenter.encode(picture(tall=False))
        assert "unet" not in counting.calls
        segmenter.segment(scene, PHRASES[0])
        assert counting.rows["unet"] == 2


def test_a_picture_too_large_for_the_masked_attention_is_refused_before_any_graph_runs() -> None:
    bundle = find_bundle("mini")
    counting = Counting(open_sessions(bundle, backend="ort-cpu", threads=1))
    with segmenter_of(bundle, counting, options_for(bundle.spec, variant="official")) as segmenter:
        with pytest.raises(InputError, match="14400 CLIP patches, at most 8192 fit; use --variant edge"):
            segmenter.encode(np.zeros((720, 1280, 3), np.uint8))
        assert counting.calls == {}
