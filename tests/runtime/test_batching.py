import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.contracts.graphs import GraphSpec
from refdiff.profiling.spans import Stopwatch, TimedSessions
from refdiff.runtime.batching import batch_size, run_batched
from refdiff.runtime.text_cache import CachedTextSessions


class Doubling:
    """Doubles each row, and notes how many it was fed."""

    graph = GraphSpec("doubling", (), ())

    def __init__(self, max_batch=None):
        self.max_batch = max_batch
        self.fed = []

    def run(self, feeds, outputs=None, *, keep_on_device=False):
        self.fed.append(len(feeds["x"]))
        return {"y": 2 * feeds["x"], "z": feeds["x"] + feeds["w"]}

    def close(self):
        pass


@given(count=st.integers(1, 20), step=st.integers(1, 9))
def test_every_row_is_run_once_in_order_and_never_more_than_a_step_of_them(count, step):
    session, x = Doubling(), np.arange(count * 3.0).reshape(count, 3)
    made = run_batched(session, {"x": x, "w": x}, step)
    np.testing.assert_array_equal(made["y"], 2 * x)
    np.testing.assert_array_equal(made["z"], 2 * x)
    assert max(session.fed) <= step
    assert sum(session.fed) == count
    assert len(session.fed) == -(-count // step)


@pytest.mark.parametrize(("max_batch", "expected"), [(None, 8), (4, 4), (1, 1), (99, 8)])
def test_no_more_is_fed_than_is_wanted_and_a_session_takes(max_batch, expected):
    assert batch_size(Doubling(max_batch), 8) == expected


class Opening:
    """Opens one session, whatever the graph."""

    def __init__(self, session):
        self.session = session

    def open(self, name):
        return self.session

    def close(self):
        pass


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda session: CachedTextSessions(Opening(session)).open("sd_text"),
        lambda session: TimedSessions(Opening(session), Stopwatch()).open("sd_text"),
    ],
    ids=["kept texts", "timed"],
)
@pytest.mark.parametrize("max_batch", [None, 4])
def test_a_wrapper_takes_as_many_rows_as_its_session(wrapped, max_batch):
    assert wrapped(Doubling(max_batch)).max_batch == max_batch
