import threading

import pytest

from refdiff.camera.key_lane import KeyJob, KeyLane, RefineJob
from refdiff.contracts.options import RunOptions
from refdiff.errors import BundleError, EngineError
from tests.support.fake_lanes import FakeEngines, Prompt
from tests.support.frames import made_frame

RUN = RunOptions()


def key_job(number=0, phrases=("the red mug",), owners=None):
    return KeyJob(frame=made_frame(number), phrases=phrases, owners=owners or phrases, options=RUN)


def refine_job(number=0):
    return RefineJob(frame=made_frame(number), prompts=(Prompt(),), owners=("mask",), options=RUN)


@pytest.fixture
def engines():
    return FakeEngines()


@pytest.fixture
def lane(engines):
    lane = KeyLane(engines.open, clock=lambda: 0.0)
    lane.start()
    yield lane
    engines.release()
    lane.close()
    assert (engines.opened, engines.closed) == (1, 1)


def test_a_frame_is_encoded_once_and_every_phrase_answered(lane, engines):
    job = key_job(7, ("the red mug", "the cup"), owners=(1, 2))
    lane.offer(job)
    assert job.finished.wait(10)
    answers = lane.take()
    assert [(each.owner, each.found.phrase, each.frame.number) for each in answers] == [
        (1, "the red mug", 7),
        (2, "the cup", 7),
    ]
    assert engines.ran.count("sam_encoder") == 1
    assert lane.take() == []
    assert lane.counts.answered == 1


def test_a_newer_frame_replaces_the_one_that_waits(lane, engines):
    engines.hold("unet")
    jobs = [key_job(number) for number in range(4)]
    lane.offer(jobs[0])
    assert engines.reached.wait(10)
    for job in jobs[1:]:
        lane.offer(job)
    assert [job.finished.is_set() for job in jobs] == [False, True, True, False]
    engines.release()
    assert jobs[3].finished.wait(10)
    assert [each.frame.number for each in lane.take()] == [0, 3]


def test_a_cancelled_frame_ends_before_its_next_graph_and_has_no_answer(lane, engines):
    engines.hold("vae_encoder")
    first, waiting, later = key_job(0), key_job(1), key_job(2)
    lane.offer(first)
    assert engines.reached.wait(10)
    lane.offer(waiting)
    lane.cancel()  # does not wait for the graph
    assert waiting.finished.is_set()
    engines.release()
    assert first.finished.wait(10)
    assert engines.ran[-1] == "vae_encoder"
    assert lane.take() == []
    assert lane.counts.cancelled == 1
    lane.offer(later)
    assert later.finished.wait(10)
    assert [each.frame.number for each in lane.take()] == [2]


def test_a_refinement_runs_in_a_gap_but_not_between_decoder_and_masks(lane, engines):
    engines.hold("sam_decoder")
    job, refinement = key_job(0), refine_job(0)
    lane.offer(job)
    assert engines.reached.wait(10)
    lane.offer(refinement)
    engines.release()
    assert job.finished.wait(10)
    assert refinement.finished.is_set()
    assert engines.ran == [
        *("sam_encoder", "sam_decoder", "sam_masks"),
        *("sam_encoder", "sam_decoder"),  # the refinement
        *("vae_encoder", "unet", "clip_image"),
    ]
    assert engines.refined == [{"box": (1, 2, 3, 4)}]
    assert [each.owner for each in lane.take()] == ["mask", "the red mug"]


def test_refinements_take_a_third_of_the_time_at_most():
    now = [0.0]

    class Slow(FakeEngines):
        def refine(self, pixels, **prompt):
            now[0] += 0.1
            return super().refine(pixels, **prompt)

        def _run(self, graph):
            if graph in ("vae_encoder", "unet", "clip_image"):
                lane.offer(refine_job())
            super()._run(graph)
            if graph == "unet":
                now[0] += 0.25

    engines = Slow()
    lane = KeyLane(engines.open, clock=lambda: now[0])
    lane.start()
    job = key_job()
    lane.offer(job)
    assert job.finished.wait(10)
    lane.close()
    begin = engines.ran.index("sam_masks") + 1
    assert engines.ran[begin:] == [
        *("sam_encoder", "sam_decoder", "vae_encoder"),
        "unet",  # no refinement: the last one was just now
        *("sam_encoder", "sam_decoder", "clip_image"),
    ]


@pytest.mark.slow
def test_a_refinement_alone_needs_no_key_frame(lane, engines):
    refinement = refine_job(3)
    lane.offer(refinement)
    assert refinement.finished.wait(10)
    assert [each.owner for each in lane.take()] == ["mask"]


def test_a_refinement_that_fails_is_counted_and_leaves_the_key_frame_alone():
    class Failing(FakeEngines):
        def refine(self, pixels, **prompt):
            raise EngineError("no memory")

    engines = Failing()
    lane = KeyLane(engines.open)
    lane.start()
    engines.hold("sam_encoder")
    job = key_job()
    lane.offer(job)
    assert engines.reached.wait(10)
    lane.offer(refine_job())
    engines.release()
    assert job.finished.wait(10)
    lane.close()
    assert (lane.counts.answered, lane.counts.refinements_failed) == (1, 1)


def test_a_graph_that_raises_once_fails_one_frame():
    engines = FakeEngines(failures=["no memory", None, "no memory", "no memory", None])
    lane = KeyLane(engines.open, most_failures=3)
    lane.start()
    errors = []
    for number in range(5):
        job = key_job(number)
        lane.offer(job)
        assert job.finished.wait(10)
        errors += [str(each.error) for each in lane.take() if each.error]
        lane.check()
    lane.close()
    assert errors == ["no memory"] * 3
    assert (lane.counts.answered, lane.counts.failed, engines.opened) == (2, 3, 1)


def test_failures_in_a_row_end_the_lane_with_the_last_error():
    engines = FakeEngines(failures=["no memory", "still no memory"])
    lane = KeyLane(engines.open, most_failures=2)
    lane.start()
    for number in range(2):
        job = key_job(number)
        lane.offer(job)
        assert job.finished.wait(10)
    late = key_job(2)
    lane.close()
    with pytest.raises(EngineError, match="still no memory"):
        lane.check()
    lane.offer(late)
    assert late.finished.is_set()
    assert engines.closed == 1


def test_engines_that_cannot_be_opened_are_the_error_of_the_start():
    def refuse(gap):
        raise BundleError("no such bundle")

    lane = KeyLane(refuse)
    with pytest.raises(BundleError, match="no such bundle"):
        lane.start()
    lane.close()


def test_closing_ends_a_key_frame_before_its_next_graph(lane, engines):
    engines.hold("vae_encoder")
    job = key_job()
    lane.offer(job)
    assert engines.reached.wait(10)
    closing = threading.Thread(target=lane.close)
    closing.start()
    engines.release()
    closing.join(10)
    assert not closing.is_alive()
    assert job.finished.is_set()
    assert engines.ran[-1] == "vae_encoder"
    lane.close()
