"""How prompts are put into calls of SAM's decoder."""

import numpy as np
import pytest

from refdiff.contracts.graphs import graph_contract
from refdiff.runtime.mask_decoder import MaskDecoder
from tests.support.plan_bundle import SPEC

EMBEDDING = np.zeros((1, 2, 2, 2), np.float32)


class _Sessions:
    """Answers each prompt with its first value as the predicted IoU, and draws it."""

    def __init__(self):
        self.fed = []
        self.drawn = []

    def open(self, name):
        self.name = name
        return {"sam_decoder": _Session(self._decode), "sam_masks": _Session(self._draw)}[name]

    def _decode(self, feeds):
        prompts = feeds["prompts"]
        self.fed.append(prompts.shape)
        firsts = prompts[:, 0, 0]
        return {
            "iou": np.repeat(firsts[:, None], 3, axis=1),
            "tokens": np.zeros((len(prompts), 3, 2), np.float32),
            "features": np.broadcast_to(firsts[:, None, None], (len(prompts), 4, 2)),
        }

    def _draw(self, feeds):
        chosen = feeds["chosen"]
        self.drawn += chosen.tolist()
        values = feeds["features"][chosen, 0, 0]
        return {"low_res": np.broadcast_to(values[:, None, None, None], (len(chosen), 3, 8, 8))}


class _Session:
    def __init__(self, run):
        self._run = run

    def run(self, feeds, outputs=None, *, keep_on_device=False):
        return self._run(feeds)


def decoded(sessions, prompts, tokens, **options):
    fed = np.zeros((prompts, tokens, 2), np.float32)
    fed[:, 0, 0] = (np.arange(prompts) + 1) / prompts
    found = list(MaskDecoder(sessions, SPEC.sam).decode(EMBEDDING, fed, **options))
    return np.concatenate([low_res for low_res, _ in found]), np.concatenate([iou for _, iou in found])


@pytest.mark.parametrize(
    ("prompts", "tokens", "fed"),
    [
        (64, 2, [64]),
        (80, 2, [64, 64]),  # filled
        (5, 2, [64]),
        (1, 2, [1]),
        (1, 7, [1]),
        (16, 3, [16]),
        (21, 3, [16, 5]),
    ],
)
def test_points_come_64_at_a_time_and_other_prompts_as_they_are(prompts, tokens, fed):
    sessions = _Sessions()
    low_res, iou = decoded(sessions, prompts, tokens)
    assert [shape[0] for shape in sessions.fed] == fed
    expected = np.repeat((np.arange(prompts) + 1) / prompts, 3).astype(np.float32)
    np.testing.assert_array_equal(iou, expected)
    np.testing.assert_array_equal(low_res[:, 0, 0], expected)


def test_what_it_feeds_fits_what_plans_are_built_for():
    from refdiff.contracts.options import options_for
    from refdiff.engines.trt.shapes import shape_profiles
    from tests.support.plans import fitting_profile

    built = shape_profiles(graph_contract(SPEC)["sam_decoder"], SPEC, [options_for(SPEC)])
    for prompts, tokens in ((1, 2), (1, 16), (80, 2), (40, 16)):
        sessions = _Sessions()
        decoded(sessions, prompts, tokens)
        for shape in sessions.fed:
            feeds = {"embedding": EMBEDDING.shape, "prompts": shape}
            assert fitting_profile(built, feeds) is not None, shape


def test_only_prompts_above_the_threshold_are_drawn():
    sessions = _Sessions()
    _, iou = decoded(sessions, 4, 2, above=0.5)
    assert sessions.drawn == [2, 3]
    assert (iou > 0.5).all()
    decoded(every := _Sessions(), 4, 2, above=0.5, every=True)
    assert every.drawn == [0, 1, 2, 3]
