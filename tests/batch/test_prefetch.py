"""Stages that overlap: order, bounds, errors, interruptions. Events take the place of time."""

import threading
import traceback

import pytest

from refdiff.batch.prefetch import BackgroundWriter, prefetch

SOON = 20.0
"""Seconds after which something that has to happen counts as hanging."""


def _no_threads_left():
    return not [t for t in threading.enumerate() if t.name.startswith(("read", "write"))]


def test_items_arrive_in_order_and_are_read_in_one_other_thread():
    readers = set()

    def read(item):
        readers.add(threading.current_thread().name)
        return 10 * item

    with prefetch(range(7), read, ahead=2) as arrived:
        assert list(arrived) == [0, 10, 20, 30, 40, 50, 60]
    assert len(readers) == 1
    assert threading.current_thread().name not in readers
    assert _no_threads_left()


def test_the_next_item_is_read_while_one_is_worked_on_and_no_more_than_that():
    begun = [threading.Event() for _ in range(9)]

    def read(item):
        begun[item].set()
        return item

    with prefetch(range(9), read, ahead=1) as arrived:
        for worked_on in range(7):
            assert next(arrived) == worked_on
            assert begun[worked_on + 1].wait(SOON)
            assert not begun[worked_on + 2].is_set()


def test_an_error_of_the_reader_is_raised_at_its_item_with_its_traceback():
    def read_of_a_broken_file(item):
        if item == 2:
            raise OSError("torn")
        return item

    taken = []
    with (
        pytest.raises(OSError, match="torn") as caught,
        prefetch(range(5), read_of_a_broken_file, ahead=1) as arrived,
    ):
        taken.extend(arrived)
    assert "read_of_a_broken_file" in [
        frame.name for frame in traceback.extract_tb(caught.value.__traceback__)
    ]
    assert _no_threads_left()


@pytest.mark.parametrize("error", [RuntimeError("graph"), KeyboardInterrupt()])
def test_an_interrupted_block_reads_no_further(error):
    read = []
    with (
        pytest.raises(type(error)),
        prefetch(range(1000), lambda item: read.append(item) or item, ahead=2) as arrived,
    ):
        next(arrived)
        raise error
    assert len(read) <= 3
    assert _no_threads_left()


def test_no_items_are_fine():
    with prefetch([], str, ahead=1) as arrived, BackgroundWriter(pending=1):
        assert list(arrived) == []
    assert _no_threads_left()


def test_everything_is_written_in_order_at_the_end_of_the_block():
    written = []
    with BackgroundWriter(pending=3) as writer:
        for item in range(20):
            writer.submit(written.append, item)
    assert written == list(range(20))
    assert _no_threads_left()


def test_a_slow_writer_delays_submit():
    gate, begun, two = threading.Event(), threading.Semaphore(0), threading.Event()
    handed_over = []

    def write(item):
        begun.release()
        assert gate.wait(SOON)

    def make():
        with BackgroundWriter(pending=2) as writer:
            for item in range(5):
                writer.submit(write, item)
                handed_over.append(item)
                if item == 1:
                    two.set()

    maker = threading.Thread(target=make)
    maker.start()
    assert begun.acquire(timeout=SOON)
    assert two.wait(SOON)
    maker.join(0.05)
    assert handed_over == [0, 1], "the third waits for the first"
    gate.set()
    maker.join(SOON)
    assert handed_over == [0, 1, 2, 3, 4]


def test_a_failed_write_raises_in_submit_with_its_traceback():
    written = []

    def write_to_a_full_disk(item):
        if item == 3:
            raise OSError("disk full")
        written.append(item)

    made = 0
    with pytest.raises(OSError, match="disk full") as caught, BackgroundWriter(pending=2) as writer:
        for made in range(1000):
            writer.submit(write_to_a_full_disk, made)
    assert made <= 6
    assert written[:3] == [0, 1, 2]
    assert "write_to_a_full_disk" in [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
    assert _no_threads_left()


def test_a_failure_of_the_last_write_is_raised():
    with pytest.raises(ZeroDivisionError), BackgroundWriter(pending=4) as writer:
        writer.submit(lambda: 1 // 0)


@pytest.mark.parametrize("error", [RuntimeError("graph"), KeyboardInterrupt()])
def test_submitted_writes_finish_when_the_block_is_interrupted(error):
    written = []
    with pytest.raises(type(error)), BackgroundWriter(pending=4) as writer:
        for item in range(3):
            writer.submit(written.append, item)
        raise error
    assert written == [0, 1, 2]
    assert _no_threads_left()


def test_the_error_that_ended_the_work_is_not_replaced_by_one_of_a_write():
    with pytest.raises(RuntimeError, match="graph"), BackgroundWriter(pending=4) as writer:
        writer.submit(lambda: 1 // 0)
        raise RuntimeError("graph")
    assert _no_threads_left()


def test_an_interruption_while_waiting_for_a_write_ends_the_block():
    """As Ctrl-C does it: the wait itself raises."""
    gate = threading.Event()
    writer = BackgroundWriter(pending=1)

    def interrupted(*, down_to):
        gate.set()
        raise KeyboardInterrupt

    written = []
    with pytest.raises(KeyboardInterrupt), writer:
        writer.submit(lambda: gate.wait(SOON) and written.append("whole"))
        writer._wait = interrupted
        writer.submit(written.append, "never begun")
    assert written == ["whole"]
    assert _no_threads_left()
