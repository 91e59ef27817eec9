import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refdiff
from refdiff.camera.frame import TargetEvent
from refdiff.camera.options import CameraOptions
from refdiff.camera.target import TrackOptions
from refdiff.camera.track import ResultQueue, Tracker, distinct_phrases
from refdiff.errors import BundleError, EngineError, InputError, SourceError, SourceLostError
from tests.support.fake_lanes import FakeEngines, FakeSource
from tests.support.frames import made_frame, made_result


def frames(count):
    return [made_frame(number) for number in range(count)]


def opened(source, phrases=("the red mug",), engines=None, **options):
    engines = engines or FakeEngines()
    return Tracker("none", source, phrases, options=CameraOptions(**options), open_engines=engines.open)


def test_a_file_gives_a_result_for_each_frame_in_order_and_ends():
    source, engines = FakeSource(frames(40)), FakeEngines()
    with opened(source, engines=engines) as tracker:
        results = list(tracker)
    assert [each.frame.number for each in results] == list(range(40))
    assert results[0].targets[0].mask is not None
    assert source.closed and engines.closed == 1
    summary = tracker.summary()
    assert (summary.results, summary.dropped) == (40, {})
    assert summary.key_frames >= 2


def test_leaving_the_loop_stops_everything():
    source, engines = FakeSource(frames(1000)), FakeEngines()
    with opened(source, engines=engines) as tracker:
        for result in tracker:
            if result.frame.number == 3:
                break
    assert source.closed and engines.closed == 1
    assert not [each for each in threading.enumerate() if each.name.startswith("refdiff-")]


def test_a_slow_consumer_of_a_live_source_loses_frames_that_are_counted():
    source = FakeSource(frames(50), live=True)
    with opened(source) as tracker:
        source.release(51)
        tracker._thread.join(10)  # the track lane has ended, though nothing was taken
        assert not tracker._thread.is_alive()
        results = list(tracker)
    assert [each.frame.number for each in results] == [48, 49]
    assert tracker.summary().dropped == {"consumer": 48}


def test_limits_end_the_run():
    with opened(FakeSource(frames(100)), max_frames=7) as tracker:
        assert len(list(tracker)) == 7
    with opened(FakeSource(frames(3), live=True), seconds=0.05) as tracker:
        assert list(tracker) == []  # no frame ever comes


def test_a_callback_gets_every_result():
    got = []
    with opened(FakeSource(frames(5))) as tracker:
        tracker.run(got.append)
    assert [each.frame.number for each in got] == list(range(5))


@pytest.mark.parametrize("error", [SourceError("no such camera"), SourceLostError("unplugged")])
def test_the_error_of_the_source_comes_after_the_results(error):
    got, source = [], FakeSource(frames(3), error=error)
    with opened(source) as tracker, pytest.raises(type(error), match=str(error)):
        tracker.run(got.append)
    assert len(got) == 3
    assert source.closed


def test_engines_that_fail_for_good_end_the_run():
    engines = FakeEngines(failures=["no memory"] * 3)
    with opened(FakeSource(frames(100)), engines=engines) as tracker, pytest.raises(EngineError):
        list(tracker)
    assert engines.closed == 1


def test_engines_that_cannot_be_opened_leave_no_source_open():
    source = FakeSource(frames(3))

    def refuse(gap):
        raise BundleError("no such bundle")

    with pytest.raises(BundleError), Tracker("none", source, "the mug", open_engines=refuse):
        pass
    assert source.closed


def test_a_source_that_cannot_be_meant_is_refused_before_the_engines_are_opened():
    opened = []
    with pytest.raises(InputError, match="source"):
        Tracker("mini", "no such file.mp4", "the mug", open_engines=opened.append)
    assert opened == []


def test_a_phrase_that_cannot_be_used_is_refused_before_the_run_and_while_it_runs():
    with pytest.raises(InputError, match="empty"), opened(FakeSource([]), ("the red mug", " ")):
        pass
    with opened(FakeSource(frames(1), live=True)) as tracker:
        with pytest.raises(InputError, match="empty"):
            tracker.set_phrases([" "])
        assert tracker.phrases == ("the red mug",)


def test_phrases_pause_and_options_change_while_it_runs():
    source, engines = FakeSource(frames(1000)), FakeEngines()
    run = refdiff.RunOptions(variant="official")
    states = {}
    with opened(source, engines=engines) as tracker:
        for result in tracker:
            number = result.frame.number
            if number == 5:
                tracker.set_phrases(["the cup"])
                tracker.use(run)
            if result.targets[0].phrase == "the cup" and result.targets[0].mask is not None:
                tracker.pause()
                assert tracker.paused
                tracker.resume()
                states[number] = engines.options
                break
    assert list(states.values()) == [run]
    assert "frames/s: in" in tracker.status()


def test_asking_for_a_key_frame_gets_one():
    texture = np.random.default_rng(0).integers(0, 255, (96, 128, 1), np.uint8).repeat(3, axis=2)
    still = [dataclasses.replace(each, pixels=texture) for each in frames(60)]  # a target is not lost
    source, engines = FakeSource(still, live=True), FakeEngines()
    with opened(source, engines=engines, key="change", track=TrackOptions(level="points")) as tracker:
        results = iter(tracker)
        source.release()
        while next(results).targets[0].state != "tracked":
            source.release()
        before = len(engines.answered)
        for _ in range(5):
            source.release()
            next(results)
        assert len(engines.answered) == before
        tracker.ask_key()
        while len(engines.answered) == before:
            source.release()
            next(results)
    assert len(engines.answered) == before + 1


@pytest.mark.slow
def test_a_generator_that_is_closed_stops_everything():
    source = FakeSource(frames(1000))
    results = refdiff.track("mini", source, "the red mug")
    assert next(results).frame.number == 0
    results.close()
    assert source.closed
    assert not [each for each in threading.enumerate() if each.name.startswith("refdiff-")]


def test_phrases_are_given_once():
    assert distinct_phrases("the mug") == ("the mug",)
    with pytest.raises(InputError, match="no phrase"):
        distinct_phrases([])
    with pytest.raises(InputError, match="'the mug' twice"):
        distinct_phrases(["the mug", "a cup", "the mug"])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=60))
def test_results_leave_the_queue_in_order_and_no_event_is_lost(moves):
    queue, put, got = ResultQueue(waits=False), 0, []
    for is_put in moves:
        if is_put:
            event = TargetEvent(kind="found", phrase="the mug", frame=put, reason="found")
            queue.put(dataclasses.replace(made_result(put), events=(event,)))
            put += 1
        else:
            got.append(queue.get(0))
    queue.finish(None)
    while not queue.finished:
        got.append(queue.get(0))
    got = [each for each in got if each is not None]
    numbers = [each.frame.number for each in got]
    assert numbers == sorted(set(numbers))
    assert len(numbers) + queue.dropped == put
    assert [event.frame for each in got for event in each.events] == list(range(put))
