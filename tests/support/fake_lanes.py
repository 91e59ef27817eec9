"""Sources, engines and targets without pixels that mean anything, for tests of the lanes."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager

import numpy as np

from refdiff.camera.frame import SourceCounts, TargetEvent, TargetResult
from refdiff.errors import EngineError, InputError
from refdiff.runtime.refinement import Refinement
from refdiff.runtime.segmentation import Segmentation

GRAPHS = ("sam_encoder", "sam_decoder", "sam_masks", "vae_encoder", "unet", "clip_image")


def made_answer(phrase="the red mug", size_yx=(96, 128)):
    mask = np.zeros(size_yx, dtype=np.bool_)
    mask[10:40, 20:60] = True
    return Segmentation(
        phrase=phrase, root="mug", mask=mask, index=0, score=0.5, scores=None, heat=None, candidates=None
    )


class FakeSource:
    """Delivers given frames; a live one when the test releases them."""

    def __init__(self, frames, *, live=False, error=None):
        self.live, self.closed = live, False
        self._frames, self._error = deque(frames), error
        self._released, self._delivered = threading.Semaphore(0), 0
        if not live:
            self.release(len(self._frames) + 1)

    def release(self, count=1):
        for _ in range(count):
            self._released.release()

    @property
    def ended(self):
        return self.closed or not (self._frames or self._error)

    def read(self, timeout_s):
        if self.closed or not self._released.acquire(timeout=timeout_s):
            return None
        if self._frames and not self.closed:
            self._delivered += 1
            return self._frames.popleft()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return None

    def counts(self):
        return SourceCounts(captured=self._delivered, delivered=self._delivered)

    def take_events(self):
        return []

    def close(self):
        self.closed = True


class FakeEngines:
    """Engines that run named graphs, and stop before those that a test holds.

    `hold(graph)` makes the next run of a graph wait; `reached` is set when it does, until `release`.
    """

    backend, reason, encoder_s = "fake", "a test", 0.01

    def __init__(self, *, graphs=GRAPHS, failures=()):
        self.opened, self.closed = 0, 0
        self.ran, self.answered, self.refined = [], [], []
        self.failures = deque(failures)
        self._graphs, self._held = graphs, None
        self.reached, self._go = threading.Event(), threading.Event()

    def open(self, gap):
        self.opened += 1
        self._gap = gap
        return self

    @property
    def sessions(self):
        return self

    @contextmanager
    def encode_once(self):
        yield

    def segmenter(self, options):
        self.options = options
        return self

    def check_phrases(self, phrases):
        for each in phrases:
            if not each.strip():
                raise InputError("got an empty phrase")

    def hold(self, graph):
        self.reached.clear()
        self._go.clear()
        self._held = graph

    def release(self):
        self._held = None
        self._go.set()

    def _run(self, graph):
        self._gap(graph)
        self.ran.append(graph)
        if graph == self._held:
            self.reached.set()
            assert self._go.wait(10)

    def encode(self, pixels):
        failure = self.failures.popleft() if self.failures else None
        for graph in self._graphs:
            self._run(graph)
        if failure:
            raise EngineError(failure)
        return pixels

    def segment_each(self, encoded, phrases):
        for each in phrases:
            self.answered.append(each)
            yield made_answer(each, encoded.shape[:2])

    def refine(self, pixels, **prompt):
        self._run("sam_encoder")
        self._run("sam_decoder")
        self.refined.append(prompt)
        masks = np.ones((3, *pixels.shape[:2]), np.bool_)
        return Refinement(masks=masks, predicted_iou=np.ones(3), low_res=np.ones((3, 2, 2)))

    def close(self):
        self.closed += 1


class FakeTarget:
    """A target that is found by any answer, and notes what is done with it."""

    def __init__(self, phrase, version):
        self.phrase, self.version = phrase, version
        self.key_number, self.newest, self.grounded, self.advanced, self.refinements = None, None, [], [], []
        self.prompt, self.lost = None, False
        self.key_s = None

    @property
    def wants_key(self):
        return self.lost or self.key_number is None

    def ground(self, answer, key_number, ring):
        assert answer.phrase == self.phrase
        first = self.key_number is None
        self.grounded.append(key_number)
        self.key_number = key_number
        kept = [each for each in ring.since(key_number) if each.number == key_number]
        self.key_s = kept[0].captured_s if kept else None
        return (
            [TargetEvent(kind="found", phrase=self.phrase, frame=key_number, reason="found")] if first else []
        )

    def advance(self, small):
        self.newest = small.number
        self.advanced.append(small.number)
        return []

    def refine_prompt(self):
        return self.prompt

    def refined(self, refinement, number, ring):
        self.refinements.append(number)
        return []

    def result(self, frame):
        assert frame.number == self.newest
        if self.key_number is None:
            return TargetResult(phrase=self.phrase, version=self.version, state="searching")
        state = "seen" if self.key_number == frame.number else "tracked"
        age_s = None if self.key_s is None else frame.captured_s - self.key_s
        return TargetResult(
            phrase=self.phrase,
            version=self.version,
            state=state,
            mask=np.ones(frame.size_yx, np.bool_),
            origin="grounded" if state == "seen" else "tracked",
            age_s=age_s,
            key_number=self.key_number,
        )


class Prompt:
    """A prompt of a refinement."""

    def arguments(self):
        return {"box": (1, 2, 3, 4)}
