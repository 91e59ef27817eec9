"""The recorded answer notices what the golden tensors of the graphs cannot: another mean, another token."""

import json
from dataclasses import replace

import pytest

from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.spec import ModelSpec
from refdiff.engines.factory import open_sessions
from refdiff.runtime.golden_answer import AnswerParity, compare_answers, give_answer

MINI = find_bundle("mini")
RECORDED = MINI.golden_answer()


def parity(spec: ModelSpec = MINI.spec, tokenizer_json: str | None = None) -> AnswerParity:
    answer = give_answer(
        open_sessions(MINI, backend="ort-cpu"),
        spec,
        tokenizer_json=tokenizer_json or MINI.tokenizer_json(),
        positions=MINI.clip_positions(),
        prompts=MINI.prompt_vectors(),
        image=RECORDED.image,
        phrase=RECORDED.phrase,
        variant=RECORDED.variant,
    )
    return compare_answers(*answer, RECORDED)


def test_the_miniature_repeats_its_recorded_answer() -> None:
    got = parity()
    assert got.same_tokens
    assert got.mask_iou == got.candidate_iou == 1
    assert got.heat_correlation > 0.99999
    assert got.score_error < 1e-5


def test_a_changed_mean_of_sam_changes_the_mask() -> None:
    sam = replace(MINI.spec.sam, pixel_mean=(123.675, 16.28, 103.53))
    assert parity(replace(MINI.spec, sam=sam)).candidate_iou < 0.9


def test_a_changed_mean_of_clip_changes_the_score() -> None:
    clip = replace(MINI.spec.clip, pixel_mean=(0.48, 0.0, 0.41))
    assert parity(replace(MINI.spec, clip=clip)).score_error > 0.01


def test_a_changed_scale_of_the_latents_changes_the_heatmap() -> None:
    diffusion = replace(MINI.spec.diffusion, scaling_factor=0.9)
    assert parity(replace(MINI.spec, diffusion=diffusion)).heat_correlation < 0.99


@pytest.mark.parametrize("swapped", [("plate</w>", "purple</w>"), ("the</w>", "orange</w>")])
def test_swapped_tokens_are_noticed(swapped: tuple[str, str]) -> None:
    document = json.loads(MINI.tokenizer_json())
    vocabulary, (one, other) = document["model"]["vocab"], swapped
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    assert not parity(tokenizer_json=json.dumps(document)).same_tokens
