"""`load`."""

from pathlib import Path

import refdiff
from refdiff.data.synthetic import HELD_OUT_FROM
from refdiff.miniature.scenes import render_scene


def test_the_daily_use_is_load_encode_segment(tiny_bundle: Path) -> None:
    with refdiff.load(tiny_bundle) as segmenter:
        scene = segmenter.encode(render_scene(HELD_OUT_FROM).image)
        first, second = (segmenter.segment(scene, phrase) for phrase in ("the left block", "the ball"))
    assert first.mask.shape == second.mask.shape == scene.image.shape[:2]
    assert first.heat is not None
    assert len(first.candidates) == len(first.scores.total)
