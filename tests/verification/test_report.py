"""The ladder as a value: which bundle, graph and output fails first, and the gates of the last bundle."""

import json

import pytest

from refdiff.accuracy.tolerances import GraphTolerance, graph_tolerance
from refdiff.contracts.parity import Parity
from refdiff.verification.report import Ladder, OutputParity, PrecisionResult

GOOD = Parity(1e-5, 1.0)
BAD = Parity(0.5, 0.2)


def output(
    graph: str,
    torch: Parity = GOOD,
    *,
    name: str = "out",
    precision: str = "fp16",
    before: Parity | None = GOOD,
    feeds: Parity | None = None,
) -> OutputParity:
    return OutputParity(
        graph=graph,
        output=name,
        precision=precision,
        torch=torch,
        before=before,
        feeds=feeds,
        tolerance=graph_tolerance(precision, graph),
    )


def result(*outputs: OutputParity, precision: str = "fp16") -> PrecisionResult:
    return PrecisionResult(
        bundle=f"bundles/{precision}", precision=precision, backend="ort-cpu", note=None, outputs=outputs
    )


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
def test_an_output_passes_within_both_limits_and_never_without_a_number(measured, passed, where):
    each = OutputParity(
        graph="unet",
        output="eps",
        precision="fp16",
        torch=measured if where == "torch" else GOOD,
        before=BAD,  # the bundle before is shown, not judged
        feeds=measured if where == "feeds" else None,
        tolerance=GraphTolerance(error=0.1, correlation=0.9),
    )
    assert each.passed is passed
    assert each.golden_passed is (passed or where == "feeds")


def test_the_first_failure_is_that_of_the_most_exact_bundle_that_has_one():
    ladder = Ladder(
        results=(
            result(output("unet", precision="fp32"), precision="fp32"),
            result(output("sd_text"), output("sam_encoder", BAD)),
            result(output("sd_text", BAD, precision="int8"), precision="int8"),
        )
    )
    assert ladder.first_failed is not None
    found, failed = ladder.first_failed
    assert (found.precision, failed.graph) == ("fp16", "sam_encoder")
    assert ladder.judged.precision == "int8"
    assert [each.passed for each in ladder.results] == [True, False, False]
    assert ladder.to_json()["first_failed"] == {
        "precision": "fp16",
        "graph": "sam_encoder",
        "output": "out",
    }


def test_within_a_bundle_the_first_output_in_pipeline_order_counts():
    failed = result(output("unet", name="eps"), output("unet", BAD, name="taps"), output("clip_text", BAD))
    assert failed.first_failed is not None
    assert (failed.first_failed.graph, failed.first_failed.output) == ("unet", "taps")


def test_a_ladder_that_holds_has_no_first_failure():
    ladder = Ladder(results=(result(output("unet")),))
    assert ladder.first_failed is None
    document = ladder.to_json()
    assert (document["first_failed"], document["first_fault"]) == (None, None)
    assert document["rungs"][0]["passed"] is True


def test_an_infinite_error_is_null_in_json():
    broken = result(output("unet", Parity(float("inf"), 0.0), before=None))
    document = json.loads(json.dumps(Ladder(results=(broken,)).to_json(), allow_nan=False))
    (shown,) = document["rungs"][0]["outputs"]
    assert shown["from_torch"] == {"error": None, "correlation": 0.0}
    assert shown["from_rung_before"] is None
    assert shown["on_recorded_feeds"] is None
    assert (shown["error_at_most"], shown["correlation_at_least"]) == (0.005, 0.9999)


def test_a_graph_is_judged_by_its_worst_output():
    judged = result(
        output("unet", Parity(1e-3, 0.99995), name="eps"),
        output("unet", Parity(2e-3, 0.99999), name="taps"),
        output("clip_text"),
    )
    assert [verdict.name for verdict in judged.error_verdicts()] == ["unet", "clip_text"]
    assert [verdict.name for verdict in judged.correlation_verdicts()] == [
        "unet correlation",
        "clip_text correlation",
    ]
    assert (judged.error_verdicts()[0].value, judged.correlation_verdicts()[0].value) == (2e-3, 0.99995)
    assert judged.feeds_verdicts() == ()


def test_a_graph_that_stayed_in_half_precision_is_judged_by_the_limits_of_half_precision():
    mixed = result(
        output("unet", Parity(0.05, 0.9999), precision="int8"),
        output("clip_text", Parity(0.05, 0.9999), precision="fp16"),
        precision="int8",
    )
    unet, clip = mixed.error_verdicts()
    assert (unet.limit, unet.passed) == (0.1, True)
    assert (clip.limit, clip.passed) == (0.005, False)
    assert mixed.first_failed is not None
    assert mixed.first_failed.graph == "clip_text"


def test_recorded_feeds_are_gates_of_their_own():
    judged = result(
        output("unet", name="eps", feeds=Parity(1e-3, 0.99999)),
        output("unet", name="taps", feeds=Parity(0.2, 0.99)),
        output("clip_text"),
    )
    assert [verdict.name for verdict in judged.feeds_verdicts()] == [
        "unet on recorded feeds",
        "unet correlation on recorded feeds",
    ]
    assert [verdict.value for verdict in judged.feeds_verdicts()] == [0.2, 0.99]
    assert not any(verdict.passed for verdict in judged.feeds_verdicts())
    assert all(verdict.passed for verdict in (*judged.error_verdicts(), *judged.correlation_verdicts()))


def test_a_rung_passes_exactly_when_its_gates_do():
    for measured in (GOOD, BAD, Parity(1e-5, 0.5), Parity(float("inf"), 0.0)):
        for feeds in (None, GOOD, BAD):
            each = result(output("unet"), output("sam_decoder", measured, feeds=feeds))
            judged = each
            gates = (*judged.error_verdicts(), *judged.correlation_verdicts(), *judged.feeds_verdicts())
            assert all(verdict.passed for verdict in gates) is each.passed
