"""The two paths to one answer: the reference on the modules, the runtime on the same modules as graphs.

No ONNX and no rounding of an engine lies between them, so what differs is an error of one of the two.
"""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from refdiff.contracts.options import MODES, options_for
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.tokenizer import Tokenizer

pytest.importorskip("torch")

from refdiff.export.sam_graphs import prompt_vectors
from refdiff.export.wrappers import TorchSessions, clip_positions
from refdiff.reference.pipeline import Reference
from tests.support.tiny_stack import TINY, tiny_picture, tiny_stack

pytestmark = pytest.mark.needs_torch

PHRASES = ("the man", "the small man on the right", "man to the left of the table", "bottom cup")

UINT8_LEVEL = 1 / 255
"""`official` truncates its map to bytes, so a difference in the last bit may cost one level."""

STRAY_PIXELS = 1e-3
"""Share of a mask that may fall on the other side of its threshold by rounding alone."""


def _answers(image, options, phrase):
    stack = tiny_stack()
    tokenizer = Tokenizer(stack.tokenizer_json, TINY.context_length)
    reference = Reference(stack=stack, options=options).segment(image, phrase)
    with Segmenter(
        sessions=TorchSessions(stack),
        spec=TINY,
        options=options,
        tokenizer=tokenizer,
        positions=clip_positions(stack),
        prompts=prompt_vectors(stack.sam),
    ) as segmenter:
        return reference, segmenter.segment(segmenter.encode(image), phrase)


def _assert_same(reference, runtime, *, atol):
    ours, theirs = reference.candidates, runtime.candidates
    assert len(ours) == len(theirs)
    assert (ours.masks != theirs.masks).mean() < STRAY_PIXELS
    assert np.array_equal(ours.kept, theirs.kept)
    np.testing.assert_allclose(ours.boxes_xyxy_px, theirs.boxes_xyxy_px, atol=1)
    np.testing.assert_allclose(ours.predicted_iou, theirs.predicted_iou, atol=1e-4)
    if reference.heat is not None:
        np.testing.assert_allclose(reference.heat, runtime.heat, atol=2 * atol)
    for field in dataclasses.fields(reference.scores):
        parts = (getattr(result.scores, field.name) for result in (reference, runtime))
        depends_on_map = field.name in ("generative", "total")
        np.testing.assert_allclose(*parts, atol=atol if depends_on_map else 1e-5, err_msg=field.name)
    assert (reference.root, reference.index) == (runtime.root, runtime.index)
    assert (reference.mask != runtime.mask).mean() < STRAY_PIXELS


@pytest.mark.parametrize("phrase", PHRASES)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "gen"])
@pytest.mark.parametrize("variant", ["official", "edge"])
def test_reference_and_runtime_agree(variant, mode, phrase):
    options = options_for(TINY, variant=variant, mode=mode)
    reference, runtime = _answers(tiny_picture(), options, phrase)
    _assert_same(reference, runtime, atol=UINT8_LEVEL if variant == "official" else 1e-4)


@pytest.mark.parametrize("variant", ["official", "edge"])
def test_reference_and_runtime_agree_on_a_tall_picture(variant):
    tall = np.ascontiguousarray(tiny_picture().transpose(1, 0, 2)[:, :41])
    options = options_for(TINY, variant=variant)
    _assert_same(
        *_answers(tall, options, "man on the left"), atol=UINT8_LEVEL if variant == "official" else 1e-4
    )


def test_reference_and_runtime_agree_on_a_picture_larger_than_every_input():
    large = np.asarray(Image.fromarray(tiny_picture()).resize((301, 170), Image.Resampling.BICUBIC))
    options = options_for(TINY, variant="edge")
    crops = dataclasses.replace(options.crops, soft_long_side=100)
    _assert_same(*_answers(large, dataclasses.replace(options, crops=crops), "man on the right"), atol=1e-4)


@pytest.mark.parametrize("variant", ["official", "edge"])
def test_reference_and_runtime_cut_the_same_level_sets_but_for_single_pixels(variant):
    options = options_for(TINY, variant=variant, mode="gen")
    reference, runtime = _answers(tiny_picture(), options, "the man on the left")
    differing = reference.candidates.masks != runtime.candidates.masks
    np.testing.assert_allclose(reference.heat, runtime.heat, atol=2 * UINT8_LEVEL)
    assert differing.mean() < (0.02 if variant == "official" else 1e-3)


@pytest.mark.parametrize("mode", ["gen+seg", "full"])
def test_reference_and_runtime_agree_on_prompts_at_the_maps_peaks(mode):
    options = options_for(TINY, variant="edge", mode=mode)
    proposals = dataclasses.replace(options.proposals, peaks=8)
    options = dataclasses.replace(options, proposals=proposals)
    _assert_same(*_answers(tiny_picture(), options, "the small man on the right"), atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 9.0])
def test_reference_and_runtime_agree_with_and_without_guidance(guidance):
    options = options_for(TINY, variant="edge")
    attention = dataclasses.replace(options.attention, guidance=guidance, timesteps=(51, 1))
    _assert_same(
        *_answers(tiny_picture(), dataclasses.replace(options, attention=attention), "the man"), atol=1e-4
    )


@pytest.mark.parametrize("phrase", ["man to the left of the table", "man with the cup", "the man"])
def test_reference_and_runtime_agree_on_negative_phrases(phrase):
    options = options_for(TINY, variant="edge")
    crops = dataclasses.replace(options.crops, negative=0.5)
    _assert_same(*_answers(tiny_picture(), dataclasses.replace(options, crops=crops), phrase), atol=1e-4)


def test_reference_and_runtime_agree_where_the_filter_takes_everything():
    options = options_for(TINY, variant="official")
    options = dataclasses.replace(options, proposals=dataclasses.replace(options.proposals, min_area_px=9999))
    reference, runtime = _answers(tiny_picture(), options, "the man")
    assert reference.index == runtime.index == 0
    np.testing.assert_array_equal(reference.scores.hard, runtime.scores.hard)
