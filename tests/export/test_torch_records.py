"""What an export records of its feeds: few values where they are a signal, all of them where they are not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.contracts.graphs import BLOCKED
from refdiff.contracts.session import half_rounded
from refdiff.export.torch_records import round_coarsely


@given(st.integers(0, 100), st.integers(-6, 6))
def test_a_signal_keeps_its_size_and_loses_its_last_digits(seed, exponent):
    signal = np.random.default_rng(seed).standard_normal((3, 200)).astype(np.float32) * np.float32(
        2.0**exponent
    )
    kept = round_coarsely(signal)
    largest = 2.0 ** np.floor(np.log2(np.abs(half_rounded(signal)).max()))
    assert np.abs(kept - signal).max() <= 0.55 * largest / 32
    assert len(np.unique(kept)) <= 4 * 32 + 1
    assert np.array_equal(kept, half_rounded(kept))
    assert np.array_equal(round_coarsely(kept), kept)


@pytest.mark.parametrize(
    "exact",
    [
        np.where(np.eye(65), 0.0, BLOCKED).astype(np.float32),
        np.array([951.0], np.float32),
        np.arange(49408, dtype=np.int32),
        np.linspace(0, 160, 64, dtype=np.float32).astype(np.float16).astype(np.float32),
    ],
    ids=["mask", "timestep", "token ids", "grid"],
)
def test_what_is_no_signal_is_recorded_as_it_is(exact):
    assert np.array_equal(round_coarsely(exact), exact)
    assert round_coarsely(exact).dtype == exact.dtype
