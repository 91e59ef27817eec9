"""The questions that are kept as the worst, and the images of one."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from refdiff.contracts.results import Candidates, Scores
from refdiff.data.sample import Sample
from refdiff.runtime.segmentation import Segmentation
from refdiff.verification.task_agreement import MOST_CASES, ComparedSample, WorstCases, compare
from refdiff.verification.worst_cases import LONGEST_PX, case_figure

SIZE_YX = (60, 90)

_seeds = itertools.count()


def answer(columns: int, *, heat: float | None = 0.5, matched: bool = True) -> Segmentation:
    """The left part of the image is chosen, or nothing."""
    masks = np.zeros((1, *SIZE_YX), np.bool_)
    masks[:, :, :columns] = True
    zero = np.zeros(1, np.float32)
    total = np.float32([0.25 if matched else -np.inf])
    return Segmentation(
        phrase="the <b>left</b> mug",
        root="mug",
        mask=masks[0] if matched else np.zeros(SIZE_YX, np.bool_),
        index=0 if matched else None,
        score=float(total[0]),
        scores=Scores(hard=zero, soft=zero, generative=zero, place=zero, total=total),
        heat=None if heat is None else np.full(SIZE_YX, heat, np.float32),
        candidates=Candidates(
            masks=masks,
            predicted_iou=zero,
            areas_px=masks.sum(axis=(1, 2), dtype=np.int64),
            boxes_xyxy_px=np.zeros((1, 4), np.int64),
            kept=np.array([matched]),
        ),
        reason=None if matched else "nothing",
    )


def case(reference: Segmentation, runtime: Segmentation) -> ComparedSample:
    picture = np.random.default_rng(3).integers(0, 255, (*SIZE_YX, 3), dtype=np.uint8)
    return ComparedSample(
        variant="edge",
        sample=Sample(id=f"scene {next(_seeds)}", image=picture, phrase=reference.phrase),
        reference=reference,
        runtime=runtime,
        agreement=compare(reference, runtime),
    )


def test_the_answer_counts_before_the_map():
    other_mask = case(answer(30), answer(33))
    other_map = case(answer(30), answer(30, heat=1.0))
    assert other_mask.badness > other_map.badness > case(answer(30), answer(30)).badness == (0.0, 0.0)


def test_only_the_worst_are_kept_worst_first():
    kept = WorstCases(most=2)
    for columns in (31, 45, 30, 60):
        kept.add(case(answer(30), answer(columns)))
    assert [each.agreement.mask_iou for each in kept.cases] == [pytest.approx(1 / 2), pytest.approx(2 / 3)]


def test_of_equals_the_first_ones_are_kept():
    kept = WorstCases()
    cases = [case(answer(30), answer(30)) for _ in range(MOST_CASES + 3)]
    for each in cases:
        kept.add(each)
    assert kept.cases == tuple(cases[:MOST_CASES])


def test_no_answer_against_an_answer_is_the_worst_there_is():
    kept = WorstCases(most=1)
    for each in (case(answer(30), answer(40)), case(answer(30), answer(30, matched=False))):
        kept.add(each)
    assert kept.cases[0].badness[0] == 1.0


def test_a_mode_without_a_map_has_no_difference_of_maps():
    found = case(answer(30, heat=None), answer(40, heat=None))
    assert found.heat_difference is None
    assert found.badness == (pytest.approx(1 / 4), 0.0)


@pytest.mark.slow
def test_a_figure_shows_scene_answers_and_maps_as_small_pictures():
    figure = case_figure(case(answer(30), answer(40, heat=0.75)), "int8")
    assert figure.title == "“the <b>left</b> mug”"  # escaped where the page is written
    assert [picture.caption for picture in figure.images] == [
        "image",
        "reference: score 0.2500",
        "int8 bundle: score 0.2500",
        "reference: attention",
        "int8 bundle: attention",
    ]
    assert "mask IoU 0.750" in figure.line
    assert "attention differs by 0.250 of 1 at most" in figure.line
    for picture in figure.images:
        with Image.open(io.BytesIO(picture.png)) as opened:
            assert opened.format == "PNG"
            assert max(opened.size) <= LONGEST_PX
            assert opened.width / opened.height == pytest.approx(SIZE_YX[1] / SIZE_YX[0], rel=0.02)
    reference, runtime = (picture.png for picture in figure.images[1:3])
    assert reference != runtime


@pytest.mark.slow
def test_a_figure_of_no_match_and_no_map_says_so():
    figure = case_figure(case(answer(30, heat=None), answer(30, heat=None, matched=False)), "fp16")
    assert [picture.caption for picture in figure.images] == [
        "image",
        "reference: score 0.2500",
        "fp16 bundle: no mask",
    ]
    assert "attention" not in figure.line
