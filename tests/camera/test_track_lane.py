import dataclasses
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.camera.key_lane import KeyAnswer, RefineJob
from refdiff.camera.options import CameraOptions, Wanted, Wishes
from refdiff.camera.target import TrackOptions
from refdiff.camera.track_lane import TrackLane
from refdiff.contracts.options import RunOptions
from refdiff.errors import EngineError, InputError
from tests.support.fake_lanes import FakeSource, FakeTarget, Prompt, made_answer
from tests.support.frames import made_frame

RED, CUP = "the red mug", "the cup"


class ScriptedKey:
    """A key lane without a thread: the test says after how many frames an answer comes."""

    def __init__(self, delay=2, encoder_s=0.01):
        self.offered, self.refinements, self.cancelled, self.error = [], [], 0, None
        self.encoder_s, self._delay, self._busy, self._age, self._done = encoder_s, delay, None, 0, []

    def check(self):
        if self.error:
            raise self.error

    def offer(self, job):
        if isinstance(job, RefineJob):
            self.refinements.append(job)
            job.finished.set()
            return
        self.offered.append(job)
        if self._delay is None:  # lockstep: at once
            self._finish(job)
        elif self._busy is None:
            self._busy, self._age = job, 0

    def cancel(self):
        self.cancelled += 1
        self._busy = None

    def take(self):
        if self._busy is not None:
            self._age += 1
            if self._age >= self._delay:
                self._finish(self._busy)
                self._busy = None
        done, self._done = self._done, []
        return done

    def fail(self, job):
        self._done += [
            KeyAnswer(owner=each, frame=job.frame, at_s=job.frame.captured_s, error=EngineError("no memory"))
            for each in job.owners
        ]

    def _finish(self, job):
        self._done += [
            KeyAnswer(
                owner=owner, frame=job.frame, at_s=job.frame.captured_s + 0.2, found=made_answer(phrase)
            )
            for owner, phrase in zip(job.owners, job.phrases, strict=True)
        ]
        job.finished.set()


class Run:
    """A track lane with everything around it."""

    def __init__(self, frames, *, live=True, phrases=(RED,), answers=None, change=None, **options):
        self.key = answers or ScriptedKey(2 if live else None)
        self.wishes = Wishes(Wanted(phrases=phrases, run=RunOptions()))
        self.targets, self.results, self.change = [], [], change or (lambda run, result: None)
        frames = list(frames)
        source = FakeSource(frames, live=live)
        source.release(len(frames) + 1)
        self.lane = TrackLane(
            source, self.key, self.wishes, CameraOptions(**options), new_target=self._make, clock=lambda: 1e6
        )

    def _make(self, phrase, version):
        self.targets.append(FakeTarget(phrase, version))
        return self.targets[-1]

    def _put(self, result):
        self.results.append(result)
        self.change(self, result)

    def go(self):
        self.lane.run(self._put, threading.Event())
        return self


def frames(*numbers):
    return [made_frame(number) for number in numbers]


def test_every_frame_has_a_result_with_masks_of_that_frame():
    run = Run(frames(*range(8)), phrases=(RED, CUP)).go()
    assert [each.frame.number for each in run.results] == list(range(8))
    assert all([target.phrase for target in each.targets] == [RED, CUP] for each in run.results)
    assert [each.targets[0].state for each in run.results[:2]] == ["searching", "searching"]
    assert {each.targets[0].state for each in run.results[2:]} == {"tracked"}
    assert [event.kind for each in run.results for event in each.events] == ["found", "found"]


def test_a_late_answer_is_taken_before_the_mask_moves_on_to_the_new_frame():
    run = Run(frames(*range(5))).go()
    target = run.targets[0]
    assert target.grounded[0] == 0
    assert target.advanced == list(range(5))
    assert run.results[2].targets[0].age_s == pytest.approx(2 / 30)


def test_the_newest_frame_is_offered_while_key_frames_are_back_to_back():
    run = Run(frames(*range(6))).go()
    assert [job.frame.number for job in run.key.offered] == list(range(6))


def test_with_a_time_between_key_frames_the_lane_rests_until_a_target_is_lost():
    def lose(run, result):
        run.targets[0].lost = result.frame.number == 10

    run = Run(frames(*range(40)), change=lose, answers=ScriptedKey(1), key=1.0).go()
    assert [job.frame.number for job in run.key.offered] == [0, 11]


def test_on_change_a_found_target_is_never_answered_again_unless_it_is_asked_for():
    def ask(run, result):
        if result.frame.number == 60:
            run.wishes.key_asked.set()

    run = Run(frames(*range(100)), change=ask, answers=ScriptedKey(1), key="change").go()
    assert [job.frame.number for job in run.key.offered] == [0, 61]


def test_a_changed_phrase_never_shows_an_answer_to_the_old_one():
    def rename(run, result):
        if result.frame.number == 1:  # the answer to frame 0 is there, and not taken yet
            run.wishes.change(lambda before: dataclasses.replace(before, phrases=(CUP,)))

    run = Run(frames(*range(6)), change=rename).go()
    old, new = run.targets
    assert old.grounded == []
    assert new.grounded[0] == 2
    assert run.key.cancelled == 1
    assert [(each.targets[0].phrase, each.targets[0].version) for each in run.results] == [
        *[(RED, 0)] * 2,
        *[(CUP, 1)] * 4,
    ]
    assert [each.targets[0].state for each in run.results[:4]] == ["searching"] * 4
    assert [each.kind for each in run.results[2].events] == ["phrase"]


def test_phrases_that_stay_keep_their_masks():
    def add(run, result):
        if result.frame.number == 4:
            run.wishes.change(lambda before: dataclasses.replace(before, phrases=(CUP, RED)))

    run = Run(frames(*range(10)), change=add).go()
    assert len(run.targets) == 2
    assert {each.targets[1].state for each in run.results[5:]} == {"tracked"}


def test_while_paused_no_frame_has_a_result_and_all_is_searched_for_afterwards():
    seen = []

    class Pausing(FakeSource):
        def read(self, timeout_s):
            frame = super().read(timeout_s)
            if frame is not None and frame.number in (4, 8):
                run.wishes.change(lambda before: dataclasses.replace(before, paused=frame.number == 4))
            return frame

    run = Run([])
    source = Pausing(frames(*range(12)), live=True)
    source.release(13)
    run.lane._source = source
    run.go()
    seen = [each.frame.number for each in run.results]
    assert seen == [0, 1, 2, 3, 8, 9, 10, 11]
    assert run.lane.counts.dropped == {"paused": 4}
    assert [each.targets[0].state for each in run.results[4:6]] == ["searching"] * 2
    assert run.results[-1].targets[0].key_number >= 8


def test_a_key_frame_that_failed_is_an_event_and_the_next_one_goes_on():
    def fail(run, result):
        if result.frame.number == 0:
            run.key.cancel()
            run.key.fail(run.key.offered[0])

    run = Run(frames(*range(6)), change=fail).go()
    assert [(each.kind, each.reason) for each in run.results[1].events] == [("failed", "no memory")]
    assert run.results[-1].targets[0].state == "tracked"


def test_the_error_of_the_key_lane_ends_the_run():
    def break_(run, result):
        run.key.error = EngineError("no memory")

    run = Run(frames(*range(6)), change=break_)
    with pytest.raises(EngineError, match="no memory"):
        run.go()
    assert len(run.results) == 1


def test_in_lockstep_a_key_frame_is_answered_before_its_own_result():
    run = Run(frames(*range(65)), live=False).go()
    assert [job.frame.number for job in run.key.offered] == [0, 30, 60]
    assert [each.frame.number for each in run.results if each.targets[0].state == "seen"] == [0, 30, 60]
    assert [round(each.targets[0].age_s * 30) for each in run.results[:31]] == [*range(30), 0]


def test_in_lockstep_times_are_those_of_the_video_and_frames_keep_their_own():
    made = [dataclasses.replace(made_frame(number), captured_s=1000.0) for number in range(31)]
    run = Run(made, live=False).go()
    assert run.results[30].frame.captured_s == 1000.0
    assert run.results[29].targets[0].age_s == pytest.approx(29 / 30)


def test_in_lockstep_a_lost_target_is_searched_for_four_times_a_second():
    def lose(run, result):
        run.targets[0].lost = True

    run = Run(frames(*range(31)), live=False, change=lose).go()
    assert [job.frame.number for job in run.key.offered] == [0, 8, 16, 24]


@pytest.mark.parametrize(
    ("level", "encoder_s", "live", "refined"),
    [
        ("auto", 0.01, True, True),
        ("auto", 0.5, True, False),
        ("auto", None, True, False),
        ("auto", 0.01, False, False),  # results of a file do not depend on the machine's speed
        ("sam", 0.5, True, True),
        ("sam", None, False, True),
        ("points", 0.01, True, False),
    ],
)
def test_sam_refines_where_it_was_asked_for_or_has_room(level, encoder_s, live, refined):
    def ask(run, result):
        run.targets[0].prompt = Prompt()

    key = ScriptedKey(2 if live else None, encoder_s)
    run = Run(frames(*range(4)), live=live, change=ask, answers=key, track=TrackOptions(level=level)).go()
    assert [job.frame.number for job in run.key.refinements] == ([1, 2, 3] if refined else [])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=40))
def test_no_frame_has_two_results_and_none_comes_after_a_newer_one(numbers):
    run = Run(frames(*numbers)).go()
    got = [each.frame.number for each in run.results]
    assert got == sorted(set(got))
    assert set(got) | {number for number in numbers if number <= max(got, default=0)} == set(numbers)
    assert len(got) + run.lane.counts.dropped.get("repeated", 0) == len(numbers)


@pytest.mark.parametrize(
    "wrong", [{"key": -1.0}, {"key": "often"}, {"most_failures": 0}, {"max_frames": 0}, {"seconds": 0.0}]
)
def test_an_option_without_a_meaning_is_refused_by_name(wrong):
    with pytest.raises(InputError, match=f"got {next(iter(wrong))}="):
        CameraOptions(**wrong).check()
