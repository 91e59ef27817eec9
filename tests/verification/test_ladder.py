"""The ladder as a value: which rung, graph and output breaks first, and the gates of the last rung."""

import json

import pytest

from refdiff.accuracy.tolerances import GraphTolerance, graph_tolerance
from refdiff.contracts.parity import Parity
from refdiff.verification.ladder import Ladder, Rung, Step, judge_rung

GOOD = Parity(1e-5, 1.0)
BAD = Parity(0.5, 0.2)


def step(
    graph: str,
    torch: Parity = GOOD,
    *,
    output: str = "out",
    precision: str = "fp16",
    before: Parity | None = GOOD,
    feeds: Parity | None = None,
) -> Step:
    return Step(
        graph=graph,
        output=output,
        precision=precision,
        torch=torch,
        before=before,
        feeds=feeds,
        tolerance=graph_tolerance(precision, graph),
    )


def rung(*steps: Step, precision: str = "fp16") -> Rung:
    return Rung(bundle=f"bundles/{precision}", precision=precision, backend="ort-cpu", note=None, steps=steps)


@pytest.mark.parametrize(
    ("measured", "passed"),
    [
        (Parity(0.1, 0.9), True),
        (Parity(0.1001, 0.95), False),
        (Parity(0.05, 0.8999), False),
        (Parity(float("inf"), 0.95), False),
        (Parity(float("nan"), 0.95), False),
        (Parity(0.05, float("nan")), False),
    ],
)
@pytest.mark.parametrize("where", ["torch", "feeds"])
def test_a_step_passes_within_both_limits_and_never_without_a_number(measured, passed, where):
    each = Step(
        graph="unet",
        output="eps",
        precision="fp16",
        torch=measured if where == "torch" else GOOD,
        before=BAD,  # the rung before is shown, not judged
        feeds=measured if where == "feeds" else None,
        tolerance=GraphTolerance(error=0.1, correlation=0.9),
    )
    assert each.passed is passed
    assert each.golden_passed is (passed or where == "feeds")


def test_the_first_failure_is_that_of_the_most_exact_rung_that_has_one():
    ladder = Ladder(
        rungs=(
            rung(step("unet", precision="fp32"), precision="fp32"),
            rung(step("sd_text"), step("sam_encoder", BAD)),
            rung(step("sd_text", BAD, precision="int8"), precision="int8"),
        )
    )
    assert ladder.first_failed is not None
    found, failed = ladder.first_failed
    assert (found.precision, failed.graph) == ("fp16", "sam_encoder")
    assert ladder.judged.precision == "int8"
    assert [each.passed for each in ladder.rungs] == [True, False, False]
    assert ladder.to_json()["first_failed"] == {
        "precision": "fp16",
        "graph": "sam_encoder",
        "output": "out",
    }


def test_within_a_rung_the_first_output_in_pipeline_order_counts():
    failed = rung(step("unet", output="eps"), step("unet", BAD, output="taps"), step("clip_text", BAD))
    assert failed.first_failed is not None
    assert (failed.first_failed.graph, failed.first_failed.output) == ("unet", "taps")


def test_a_ladder_that_holds_has_no_first_failure():
    ladder = Ladder(rungs=(rung(step("unet")),))
    assert ladder.first_failed is None
    document = ladder.to_json()
    assert (document["first_failed"], document["first_fault"]) == (None, None)
    assert document["rungs"][0]["passed"] is True


def test_an_infinite_error_is_null_in_json():
    broken = rung(step("unet", Parity(float("inf"), 0.0), before=None))
    document = json.loads(json.dumps(Ladder(rungs=(broken,)).to_json(), allow_nan=False))
    (output,) = document["rungs"][0]["outputs"]
    assert output["from_torch"] == {"error": None, "correlation": 0.0}
    assert output["from_rung_before"] is None
    assert output["on_recorded_feeds"] is None
    assert (output["error_at_most"], output["correlation_at_least"]) == (0.005, 0.9999)


def test_a_graph_is_judged_by_its_worst_output():
    judged = judge_rung(
        rung(
            step("unet", Parity(1e-3, 0.99995), output="eps"),
            step("unet", Parity(2e-3, 0.99999), output="taps"),
            step("clip_text"),
        )
    )
    assert [verdict.name for verdict in judged.error] == ["unet", "clip_text"]
    assert [verdict.name for verdict in judged.correlation] == ["unet correlation", "clip_text correlation"]
    assert (judged.error[0].value, judged.correlation[0].value) == (2e-3, 0.99995)
    assert judged.feeds == ()


def test_a_graph_that_stayed_in_half_precision_is_judged_by_the_limits_of_half_precision():
    mixed = rung(
        step("unet", Parity(0.05, 0.9999), precision="int8"),
        step("clip_text", Parity(0.05, 0.9999), precision="fp16"),
        precision="int8",
    )
    unet, clip = judge_rung(mixed).error
    assert (unet.limit, unet.passed) == (0.1, True)
    assert (clip.limit, clip.passed) == (0.005, False)
    assert mixed.first_failed is not None
    assert mixed.first_failed.graph == "clip_text"


def test_recorded_feeds_are_gates_of_their_own():
    judged = judge_rung(
        rung(
            step("unet", output="eps", feeds=Parity(1e-3, 0.99999)),
            step("unet", output="taps", feeds=Parity(0.2, 0.99)),
            step("clip_text"),
        )
    )
    assert [verdict.name for verdict in judged.feeds] == [
        "unet on recorded feeds",
        "unet correlation on recorded feeds",
    ]
    assert [verdict.value for verdict in judged.feeds] == [0.2, 0.99]
    assert not any(verdict.passed for verdict in judged.feeds)
    assert all(verdict.passed for verdict in (*judged.error, *judged.correlation))


def test_a_rung_passes_exactly_when_its_gates_do():
    for measured in (GOOD, BAD, Parity(1e-5, 0.5), Parity(float("inf"), 0.0)):
        for feeds in (None, GOOD, BAD):
            each = rung(step("unet"), step("sam_decoder", measured, feeds=feeds))
            judged = judge_rung(each)
            gates = (*judged.error, *judged.correlation, *judged.feeds)
            assert all(verdict.passed for verdict in gates) is each.passed
