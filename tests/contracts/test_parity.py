import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.contracts.parity import relative_error, select_recorded, subsample


@given(st.integers(0, 5000), st.integers(1, 1024))
def test_what_was_thinned_is_found_again_in_the_output(size, most_values):
    output = np.arange(size, dtype=np.float32)
    record = subsample(output, 4 * most_values)
    assert record.size <= most_values
    assert np.array_equal(select_recorded(output, record), record)


def test_a_thinned_record_sees_every_column():
    columns = np.broadcast_to(np.arange(128, dtype=np.float32), (2, 77, 128))
    assert set(subsample(columns, 1 << 15)) == set(range(128))


def test_a_thinned_record_reaches_to_the_end_of_the_output():
    output = np.arange(10_000, dtype=np.float32).reshape(2, 50, 100)
    record = subsample(output, 4_000)
    assert record.shape == (910,)  # every 11th: the first step above 10 that misses no column
    assert record[-1] > 9_980


def test_an_output_of_another_size_does_not_pass_for_its_record():
    record = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    grown = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    assert relative_error(select_recorded(grown, record), record) == float("inf")


def test_the_error_is_a_share_of_the_range():
    expected = np.array([0.0, 10.0], np.float32)
    assert relative_error(expected + 0.5, expected) == 0.05
    assert relative_error(np.full(2, np.nan, np.float32), expected) == float("inf")
