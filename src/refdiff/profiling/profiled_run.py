"""A segmenter under the watch: what is asked of it, in which order, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from refdiff.contracts.progress import Progress
from refdiff.data.sample import Sample
from refdiff.profiling.measuring import Yardstick
from refdiff.profiling.report import MemoryUse
from refdiff.profiling.samples import Sample as TimedSample
from refdiff.profiling.samples import sample_of
from refdiff.profiling.sensors import (
    Memory,
    MemorySampler,
    Reading,
    Sensors,
    peak_resident,
    read_memory,
    throttled,
)
from refdiff.profiling.spans import Span, Stopwatch
from refdiff.runtime.pipeline import Segmenter

_PRODUCTS = 5
"""Runs of the yardstick before a round."""


@dataclass(kw_only=True)
class ProfiledRun:
    """A segmenter under the watch, and what comes of it."""

    segmenter: Segmenter
    watch: Stopwatch
    inputs: Sequence[Sample]
    sensors: Sensors
    tell: Progress
    yardstick: Yardstick | None = None
    peaks: list[list[float]] = field(default_factory=list)
    cold: tuple[Span, ...] = ()
    samples: list[TimedSample] = field(default_factory=list)
    spans: list[tuple[str, tuple[Span, ...]]] = field(default_factory=list)
    start: Reading = field(default_factory=Reading)
    end: Reading = field(default_factory=Reading)
    graph_memory: dict[str, Memory] = field(default_factory=dict)

    def start_cold(self) -> None:
        """The first question, which loads every graph it needs."""
        self.tell("cold start")
        self._segment(self.inputs[0])
        self.cold = self.watch.take()

    def run(self, runs: int, warmup: int) -> None:
        """The rounds to warm up, and those that count."""
        for number in range(warmup):
            self.tell(f"warming up, round {number + 1}/{warmup}")
            self._round()
        self.watch.take()
        self.start = self.sensors.read()
        for number in range(runs):
            self.tell(f"round {number + 1}/{runs}")
            if self.yardstick is not None:
                self.peaks.append([self.yardstick.gflops() for _ in range(_PRODUCTS)])
            for index, sample in enumerate(self.inputs):
                before = self.sensors.read()
                self._segment(sample)
                spans = self.watch.take()
                reasons = throttled(self.start, before, self.sensors.read())
                self.samples.append(sample_of(spans, round=number, picture=index, throttled=reasons))
                self.spans.append((f"round {number + 1}: {sample.id}, {sample.phrase!r}", spans))
        self.end = self.sensors.read()

    def sample_memory(self, before: Memory | None) -> MemoryUse:
        """One more round, with somebody looking at the memory."""
        self.tell("sampling memory")
        loaded = read_memory()
        with MemorySampler() as sampler:
            self._round()
        spans = self.watch.take()
        stages: dict[str, Memory] = {}
        for span in spans:
            seen = sampler.most(span.start_ns, span.end_ns)
            kept = stages if span.kind == "stage" else self.graph_memory if span.kind == "graph" else None
            if seen is not None and kept is not None:
                kept[span.name] = seen.larger(kept.get(span.name))
        return MemoryUse(
            before=before,
            loaded=loaded,
            most=sampler.most(spans[0].start_ns, spans[-1].end_ns),
            high_water_resident=peak_resident(),
            stages=stages,
        )

    def _round(self) -> None:
        for sample in self.inputs:
            self._segment(sample)

    def _segment(self, sample: Sample) -> None:
        """Segment a sample; decoding its image is part of the work."""
        self.segmenter.segment(self.segmenter.encode(sample.image), sample.phrase)
