"""What is cached of a run decides as the run does, and different readings of the map differ."""

import dataclasses

import numpy as np
import pytest

from refdiff.contracts.options import VARIANTS, BackendOptions, RunOptions
from refdiff.data.sample import SampleList
from refdiff.data.synthetic import RenderedScenes
from refdiff.errors import InputError
from refdiff.evaluation.cached_scores import cache_scores
from refdiff.evaluation.records import records_of
from refdiff.loading import load

EDGE = VARIANTS["edge"]
ONE_THREAD = BackendOptions(name="ort-cpu", threads=1)
SCENES = tuple(RenderedScenes(count=3))


@pytest.mark.slow
def test_the_cached_parts_choose_what_the_segmenter_chooses():
    absent = dataclasses.replace(SCENES[0], id="absent", truth=np.zeros_like(SCENES[0].truth))
    readings = (EDGE.attention, dataclasses.replace(EDGE.attention, layer_weights=(1.0, 0.0, 0.0)))
    cached = cache_scores("mini", SampleList((*SCENES, absent)), readings, backend=ONE_THREAD)
    assert cached.pictures == tuple(sample.id for sample in SCENES)  # nothing can be found of what is absent
    chosen = cached.choose(EDGE.fusion, 0)
    with load("mini", backend=ONE_THREAD) as segmenter:
        answers = [segmenter.segment(sample.read(), sample.phrase) for sample in SCENES]
    records = list(records_of(SCENES, answers))
    assert chosen.tolist() == [answer.index for answer in answers]
    np.testing.assert_allclose(cached.ious(chosen), [record.iou for record in records], atol=1e-9)
    for row, answer in enumerate(answers):
        heat = cached.inside[0, row] - cached.outside[0, row]
        np.testing.assert_allclose(heat[: len(answer.candidates)], answer.scores.generative, atol=1e-5)
    assert np.abs(cached.inside[1] - cached.inside[0]).max() > 0.01


def test_a_mode_without_all_parts_is_refused():
    with pytest.raises(InputError, match="got mode gen, expected full"):
        cache_scores("mini", SampleList(SCENES), options=RunOptions(mode="gen"))


def test_a_data_set_without_targets_is_refused():
    nothing = tuple(dataclasses.replace(sample, truth=np.zeros_like(sample.truth)) for sample in SCENES)
    with pytest.raises(InputError, match="no sample with a target"):
        cache_scores("mini", SampleList(nothing), backend=ONE_THREAD)
