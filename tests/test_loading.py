"""`load`."""

from pathlib import Path

import pytest

import refdiff
from refdiff.contracts.options import DEFAULT_BACKEND, RunOptions
from refdiff.data.synthetic import HELD_OUT_FROM
from refdiff.loading import Engines
from refdiff.miniature.scenes import render_scene


def test_the_daily_use_is_load_encode_segment(mini_bundle: Path) -> None:
    with refdiff.load(mini_bundle) as segmenter:
        encoded = segmenter.encode(render_scene(HELD_OUT_FROM).image)
        first, second = (segmenter.segment(encoded, phrase) for phrase in ("the left block", "the ball"))
    assert first.mask.shape == second.mask.shape == encoded.pixels.shape[:2]
    assert first.heat is not None
    assert len(first.candidates) == len(first.scores.total)


def test_a_backend_given_as_text_is_refused_with_the_value_to_give(mini_bundle: Path) -> None:
    with pytest.raises(refdiff.InputError, match=r"expected BackendOptions, such as BackendOptions\(name="):
        refdiff.load(mini_bundle, backend="ort-cpu")  # type: ignore[arg-type]


def test_segmenters_of_other_options_use_the_same_sessions(mini_bundle: Path) -> None:
    engines = Engines(mini_bundle, RunOptions(), DEFAULT_BACKEND, lambda graph: None)
    edge, official = engines.segmenter(RunOptions()), engines.segmenter(RunOptions(variant="official"))
    assert engines.segmenter(RunOptions()) is edge
    assert (edge.options.variant, official.options.variant) == ("edge", "official")
    with pytest.raises(refdiff.InputError, match="unknown variant"):
        engines.segmenter(RunOptions(variant="other"))
    engines.close()
