import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.contracts.graphs import GraphSpec
from refdiff.profiling.spans import Stopwatch
from refdiff.profiling.timed_sessions import TimedSessions
from refdiff.runtime.batching import rows_per_call, run_rows
from refdiff.runtime.text_cache import TextKeeping


class Doubling:
    """Doubles each row, and notes how many it was fed."""

    graph = GraphSpec("doubling", (), ())

    def __init__(self):
        self.fed = []

    def run(self, feeds, outputs=None):
        self.fed.append(len(feeds["x"]))
        return {"y": 2 * feeds["x"], "z": feeds["x"] + feeds["w"]}

    def close(self):
        pass


class Bounded(Doubling):
    def __init__(self, most_rows):
        super().__init__()
        self.most_rows = most_rows


@given(count=st.integers(1, 20), step=st.integers(1, 9))
def test_every_row_is_run_once_in_order_and_never_more_than_a_step_of_them(count, step):
    session, x = Doubling(), np.arange(count * 3.0).reshape(count, 3)
    made = run_rows(session, {"x": x, "w": x}, step)
    np.testing.assert_array_equal(made["y"], 2 * x)
    np.testing.assert_array_equal(made["z"], 2 * x)
    assert max(session.fed) <= step
    assert sum(session.fed) == count
    assert len(session.fed) == -(-count // step)


@pytest.mark.parametrize(
    ("session", "expected"),
    [(Bounded(None), 8), (Bounded(4), 4), (Bounded(1), 1), (Bounded(99), 8), (Doubling(), 2)],
)
def test_a_session_s_bound_holds_and_one_that_says_nothing_gets_what_is_safe(session, expected):
    assert rows_per_call(session, wanted=8, safe=2) == expected


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
        lambda session: TextKeeping(Opening(session)).open("sd_text"),
        lambda session: TimedSessions(Opening(session), Stopwatch()).open("sd_text"),
    ],
    ids=["kept texts", "timed"],
)
@pytest.mark.parametrize(("session", "expected"), [(Bounded(None), 8), (Bounded(4), 4), (Doubling(), 2)])
def test_a_wrapper_says_what_its_session_says_and_nothing_where_that_says_nothing(wrapped, session, expected):
    assert rows_per_call(wrapped(session), wanted=8, safe=2) == expected
