"""`segment` as a function."""

from pathlib import Path

import numpy as np
import pytest

import refdiff
from refdiff.batch import prediction
from refdiff.data.synthetic import HELD_OUT_FROM
from refdiff.miniature.scenes import render_scene


@pytest.mark.slow
def test_segment_answers_as_load_does(mini_bundle: Path) -> None:
    image = render_scene(HELD_OUT_FROM).image
    predicted = prediction.segment(
        mini_bundle, image, "the left block", options=refdiff.RunOptions(variant="official", seed=3)
    )
    with refdiff.load(mini_bundle, options=refdiff.RunOptions(variant="official", seed=3)) as segmenter:
        result = segmenter.segment(segmenter.encode(image), "the left block")
    assert np.array_equal(predicted.result.mask, result.mask)
    assert predicted.result.score == result.score
    assert predicted.backend == "ort-cpu"
