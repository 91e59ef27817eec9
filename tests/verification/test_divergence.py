"""One tensor compared with what it should be, and which node of a failing graph is blamed."""

import dataclasses
import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.accuracy.tolerances import GraphTolerance
from refdiff.contracts.session import Array
from refdiff.verification.divergence import Divergence, NodeResult, difference_of, first_outside_tolerance

LIMIT = GraphTolerance(error=0.1, correlation=0.99)

RAMP = np.linspace(-2.0, 2.0, 101, dtype=np.float32)


def off(share: float) -> Array:
    """The ramp, its root mean square off by this share."""
    sign = np.where(np.arange(RAMP.size) % 2, 1.0, -1.0)
    return (RAMP + sign * share * np.sqrt(np.mean(RAMP.astype(np.float64) ** 2))).astype(np.float32)


def result(node: str, got: Array, expected: Array | None = RAMP, *, before: float = 0.0, type: str = "FLOAT"):
    return NodeResult(
        node=node,
        operator="Mul",
        tensor=f"{node}:0",
        type=type,
        difference=difference_of(got, expected, LIMIT),
        input_error=before,
    )


def divergence(
    blamed: NodeResult, cause="outside its tolerance", compared_with: str | None = "fp32"
) -> Divergence:
    return Divergence(
        precision="fp16",
        graph="unet",
        compared_with=compared_with,
        cause=cause,
        result=blamed,
        tolerance=LIMIT,
    )


@given(st.floats(0.0, 10.0))
def test_the_error_is_a_root_mean_square_over_that_of_what_is_expected(share):
    assert difference_of(off(share), RAMP, LIMIT).error == pytest.approx(share, abs=1e-6)


@given(st.floats(1e-6, 1e6))
def test_the_error_does_not_depend_on_the_unit(unit):
    got = difference_of(off(0.05) * np.float32(unit), RAMP * np.float32(unit), LIMIT)
    assert got.error == pytest.approx(0.05, rel=1e-3)


def test_a_few_clipped_values_are_no_fault_and_a_saturated_tensor_is():
    reaching = RAMP.copy()
    reaching[-1] = 4.0
    assert not difference_of(np.clip(reaching, -3.5, 3.5), reaching, LIMIT).exceeds(LIMIT)
    assert difference_of(np.clip(reaching, -0.1, 0.1), reaching, LIMIT).exceeds(LIMIT)


def test_the_worst_value_is_shown_with_what_is_expected():
    got = RAMP.copy()
    got[7] = 9.0
    found = difference_of(got, RAMP, LIMIT)
    assert (found.value, found.expected) == (9.0, pytest.approx(float(RAMP[7])))
    assert (found.largest, found.largest_expected) == (9.0, 2.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_new_non_number_is_infinitely_wrong_and_is_counted(value):
    got = RAMP.copy()
    got[3:5] = value
    found = difference_of(got, RAMP, LIMIT)
    assert not found.is_finite
    assert found.exceeds(LIMIT)
    assert found.nan + found.inf == 2
    assert found.largest == 2.0
    assert not math.isfinite(found.value)


def test_a_non_number_that_was_there_before_is_none():
    masked = RAMP.copy()
    masked[:3] = (-np.inf, np.nan, np.inf)
    found = difference_of(masked, masked, LIMIT)
    assert (found.error, found.correlation, found.nan, found.inf) == (0.0, pytest.approx(1.0), 1, 2)
    assert not found.exceeds(LIMIT)


def test_an_infinity_of_the_other_sign_is_new():
    one, other = RAMP.copy(), RAMP.copy()
    one[0], other[0] = np.inf, -np.inf
    assert not difference_of(one, other, LIMIT).is_finite


@pytest.mark.parametrize("expected", [None, np.zeros((2, 3), np.float32)])
def test_what_cannot_be_compared_is_looked_at_for_non_numbers_alone(expected):
    found = difference_of(RAMP * 1000, expected, LIMIT)
    assert (found.error, found.correlation, found.expected, found.largest_expected) == (0.0, None, None, None)
    assert not found.exceeds(LIMIT)
    got = RAMP.copy()
    got[50] = np.nan
    found = difference_of(got, expected, LIMIT)
    assert found.exceeds(LIMIT)
    assert math.isnan(found.value)


def test_what_an_offset_hides_from_the_error_is_seen_by_the_correlation():
    flat = difference_of(np.full_like(RAMP, 100), RAMP + 100, GraphTolerance(error=0.005, correlation=0.99))
    assert flat.error == pytest.approx(0.0117, rel=0.01)
    assert flat.correlation == 0.0
    assert flat.exceeds(GraphTolerance(error=0.1, correlation=0.99))


def test_a_tensor_that_varies_by_less_than_the_tolerance_has_no_correlation_to_lose():
    flat = difference_of(np.full_like(RAMP, 100), RAMP + 100, GraphTolerance(error=0.02, correlation=0.99))
    assert flat.correlation == 1.0


def test_nothing_and_zeros_are_compared_too():
    assert difference_of(np.zeros(0), np.zeros(0), LIMIT).error == 0.0
    assert difference_of(np.zeros(3), np.zeros(3), LIMIT).error == 0.0
    assert difference_of(np.full(3, 0.5), np.zeros(3), LIMIT).error == 0.5


def test_half_precision_is_compared_in_double():
    big = np.full(4, 60000, np.float16)
    assert difference_of(big, np.full(4, 60000, np.float32), LIMIT).error == 0.0


def test_the_first_node_outside_is_blamed_and_none_after_it_is_asked_for():
    asked: list[str] = []

    def results() -> Iterator[NodeResult]:
        for name, share in (("a", 0.01), ("b", 0.2), ("c", 0.9)):
            asked.append(name)
            yield result(name, off(share))

    found = first_outside_tolerance(results(), LIMIT)
    assert found is not None
    assert (found[0], found[1].node) == ("outside its tolerance", "b")
    assert asked == ["a", "b"]


def test_a_node_that_is_not_finite_is_blamed_as_such():
    broken = RAMP.copy()
    broken[0] = np.nan
    found = first_outside_tolerance([result("a", off(0.01)), result("b", broken)], LIMIT)
    assert found is not None
    assert (found[0], found[1].node) == ("not finite", "b")


def test_where_none_is_outside_the_largest_growth_is_blamed():
    results = [
        result("a", off(0.02)),
        result("b", off(0.06), before=0.02),
        result("c", off(0.08), before=0.06),
    ]
    found = first_outside_tolerance(results, LIMIT)
    assert found is not None
    assert (found[0], found[1].node) == ("largest growth", "b")


def test_nodes_without_a_difference_are_not_blamed():
    assert first_outside_tolerance([], LIMIT) is None
    assert (
        first_outside_tolerance([result("a", RAMP), result("b", RAMP * 100, None, before=0.5)], LIMIT) is None
    )


def test_a_fault_names_graph_node_and_value_on_one_line():
    said = str(divergence(result("mid/Mul", RAMP * 0.02)))
    assert said.startswith("fp16 unet: node mid/Mul (Mul) is the first outside its tolerance: off by 0.98 of")
    assert "allowed 0.1" in said
    assert "magnitudes reach 0.04 where 2 is expected" in said
    assert "\n" not in said
    assert "fp16 ends at" not in said


def test_a_fault_of_correlation_says_so():
    tolerance = GraphTolerance(error=0.01, correlation=0.999)
    blamed = dataclasses.replace(
        result("a", RAMP), difference=difference_of(off(0.09) + 100, RAMP + 100, tolerance)
    )
    assert blamed.difference.error <= tolerance.error
    assert blamed.difference.exceeds(tolerance)
    said = str(dataclasses.replace(divergence(blamed), tolerance=tolerance))
    assert "the first outside its tolerance: correlates 0.99" in said
    assert "expected 0.999 or more" in said


def test_an_overflow_says_where_half_precision_ends():
    over = (RAMP * 50_000).astype(np.float32)
    with np.errstate(over="ignore"):
        got = over.astype(np.float16)
    blamed = result("up", got, over, type="FLOAT16")
    said = str(divergence(blamed, "not finite"))
    assert "is the first whose result is not finite; it holds -inf where -1e+05 is expected" in said
    assert "magnitudes reach 6.4" in said
    assert f"0 NaN and {np.isinf(got).sum()} Inf of 101 values" in said
    assert said.endswith("fp16 ends at 65504")
    alone = str(divergence(result("up", got, None, type="FLOAT16"), "not finite", None))
    assert alone.endswith("fp16 ends at 65504")
    wide = str(divergence(result("up", got.astype(np.float32), over, type="BFLOAT16"), "not finite"))
    assert "fp16 ends" not in wide


def test_growth_is_not_called_a_fault_of_the_node():
    said = str(divergence(result("a", off(0.05)), "largest growth"))
    assert "is where the error grows most, though none is outside its tolerance: off by 0.05" in said


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.0])
def test_a_fault_is_strict_json(value):
    got = RAMP.copy()
    got[1] = value
    for expected, compared in ((RAMP, "fp32"), (None, None)):
        document = divergence(result("a", got, expected), "not finite", compared).to_json()
        read = json.loads(json.dumps(document, allow_nan=False))
        assert (read["graph"], read["node"], read["compared_with"]) == ("unet", "a", compared)
        assert read["error_at_most"] == LIMIT.error
        assert read["nan"] == int(np.isnan(value))
