"""The measured rounds of a profile: which samples run in which order, and what is recorded meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from refdiff.contracts.progress import Progress, Step
from refdiff.data.sample import Sample
from refdiff.profiling.macs import MatrixProduct
from refdiff.profiling.report import MemoryUse
from refdiff.profiling.sensors import (
    Memory,
    MemorySampler,
    Reading,
    Sensors,
    peak_resident,
    read_memory,
    throttled,
)
from refdiff.profiling.spans import Span, Stopwatch, TimedSample
from refdiff.runtime.pipeline import Segmenter


@dataclass(kw_only=True)
class ProfiledRun:
    """Runs samples through a segmenter and records timings."""

    segmenter: Segmenter
    watch: Stopwatch
    inputs: Sequence[Sample]
    """The samples of one round, with the bytes of their image files: decoding is part of the work."""
    sensors: Sensors
    progress: Progress
    cold: tuple[Span, ...] = ()
    samples: list[TimedSample] = field(default_factory=list)
    spans: list[tuple[str, tuple[Span, ...]]] = field(default_factory=list)
    """Title and spans of every measured sample."""
    products: list[list[float]] = field(default_factory=list)
    """GFLOP/s of the matrix product before each round."""
    start: Reading = field(default_factory=Reading)
    end: Reading = field(default_factory=Reading)
    graph_memory: dict[str, Memory] = field(default_factory=dict)
    """Graph -> highest memory while it ran."""

    def run_cold(self) -> None:
        """Run the first sample, which loads every graph it needs."""
        self.progress("cold start")
        self._segment(self.inputs[0])
        self.cold = self.watch.take()

    def run(self, runs: int, warmup: int, product: MatrixProduct | None) -> None:
        """Run the rounds to warm up, and those that are measured."""
        for number in range(warmup):
            self.progress(f"warming up, round {number + 1}/{warmup}")
            self._run_round()
        self.watch.take()
        self.start = self.sensors.read()
        for number in range(runs):
            self.progress(Step(f"round {number + 1}/{runs}", done=number, total=runs, unit="rounds"))
            if product is not None:
                self.products.append(product.measure_round())
            for index, sample in enumerate(self.inputs):
                before = self.sensors.read()
                self._segment(sample)
                spans = self.watch.take()
                reasons = throttled(self.start, before, self.sensors.read())
                self.samples.append(TimedSample.of(spans, round=number, index=index, throttled=reasons))
                self.spans.append((f"round {number + 1}: {sample.id}, {sample.phrase!r}", spans))
        self.end = self.sensors.read()

    def sample_memory(self, before: Memory | None) -> MemoryUse:
        """Run one more round while the process's memory is sampled."""
        self.progress("sampling memory")
        loaded = read_memory()
        with MemorySampler() as sampler:
            self._run_round()
        spans = self.watch.take()
        stages: dict[str, Memory] = {}
        for span in spans:
            seen = sampler.highest(span.start_ns, span.end_ns)
            kept = {"stage": stages, "graph": self.graph_memory}.get(span.kind)
            if seen is not None and kept is not None:
                kept[span.name] = seen.larger(kept.get(span.name))
        return MemoryUse(
            before=before,
            loaded=loaded,
            highest=sampler.highest(spans[0].start_ns, spans[-1].end_ns),
            high_water_resident=peak_resident(),
            stages=stages,
        )

    def _run_round(self) -> None:
        for sample in self.inputs:
            self._segment(sample)

    def _segment(self, sample: Sample) -> None:
        self.segmenter.segment(self.segmenter.encode(sample.fetch()), sample.phrase)
