"""Text graphs run once per text, whatever batch it comes in."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.errors import InputError
from refdiff.runtime.text_cache import CachedTextSessions

TEXT = GraphSpec(
    "clip_text",
    (TensorSpec("ids", "int32", ("b", 3)), TensorSpec("end", "int32", ("b",))),
    (TensorSpec("vector", "float32", ("b", 2)),),
)


class Summing:
    """Answers each row with its own sum; remembers which rows it was asked for."""

    def __init__(self):
        self.graph = TEXT
        self.asked = []
        self.closed = False

    def run(self, feeds, outputs=None, *, keep_on_device=False):
        self.asked += feeds["ids"].sum(axis=1).tolist()
        total = feeds["ids"].sum(axis=1) + 100 * feeds["end"]
        return {"vector": np.stack([total, -total], axis=1).astype(np.float32)}

    def close(self):
        self.closed = True


class Factory:
    def __init__(self):
        self.session = Summing()

    def open(self, name):
        return self.session

    def close(self):
        self.session.close()


def feeds(*sums, end=1):
    ids = np.array([[total, 0, 0] for total in sums], np.int32)
    return {"ids": ids, "end": np.full(len(sums), end, np.int32)}


def test_only_unknown_rows_are_run_and_answers_keep_their_order():
    factory = Factory()
    session = CachedTextSessions(factory).open("clip_text")
    session.run(feeds(1, 2))
    answer = session.run(feeds(3, 2, 3, 1))["vector"]
    assert factory.session.asked == [1, 2, 3]
    assert answer.tolist() == [[103, -103], [102, -102], [103, -103], [101, -101]]


def test_every_input_tells_texts_apart():
    factory = Factory()
    session = CachedTextSessions(factory).open("clip_text")
    assert session.run(feeds(1, end=1))["vector"][0, 0] == 101
    assert session.run(feeds(1, end=2))["vector"][0, 0] == 201


def test_the_least_recently_used_text_goes_first():
    factory = Factory()
    session = CachedTextSessions(factory, most=2).open("clip_text")
    for total in (1, 2, 1, 3, 1, 2):
        session.run(feeds(total))
    assert factory.session.asked == [1, 2, 3, 2]
    assert len(session.run(feeds(4, 5, 6))["vector"]) == 3  # more at once than are kept


def test_an_answer_that_a_caller_changes_is_not_what_is_kept():
    session = CachedTextSessions(Factory()).open("clip_text")
    session.run(feeds(1))["vector"][:] = 0
    assert session.run(feeds(1))["vector"][0, 0] == 101


def test_several_threads_get_their_own_answers():
    session = CachedTextSessions(Factory(), most=4).open("clip_text")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: session.run(feeds(i % 7))["vector"][0, 0], range(200)))
    assert answers == [100 + i % 7 for i in range(200)]


def test_other_graphs_are_handed_through_and_closing_reaches_the_sessions():
    factory = Factory()
    keeping = CachedTextSessions(factory)
    assert keeping.open("sam_encoder") is factory.session
    session = keeping.open("clip_text")
    session.run(feeds(1))
    keeping.close()
    assert factory.session.closed
    keeping.open("clip_text").run(feeds(1))
    assert factory.session.asked == [1, 1]


def test_feeds_that_do_not_fit_are_refused_though_they_may_be_known():
    session = CachedTextSessions(Factory()).open("clip_text")
    with pytest.raises(InputError, match="expected exactly ids, end"):
        session.run({"ids": feeds(1)["ids"]})
