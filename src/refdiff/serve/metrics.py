"""Measurements of a running server, in the text format of Prometheus."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from refdiff.runtime.observer import VERBS, Stage, Verb

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counts requests and times stages; it is the observer of the segmenter.

    Every instance has a registry of its own, so that two servers in one process do not mix.

    Args:
        labels: of every value, such as the name of a replica: the counters of two are then never taken for
            those of one.
    """

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        self._labels = dict(labels or {})
        self._registry = CollectorRegistry()
        # A request's phrases are checked, a stage too, in another thread than the job's.
        self._job = threading.local()
        self.requests = Counter(
            "refdiff_requests", "Requests by path and status.", ("path", "status"), registry=self._registry
        )
        self.request_seconds = Histogram(
            "refdiff_request_seconds",
            "Time from the request's head to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stage_seconds = Histogram(
            "refdiff_stage_seconds",
            "Time of each stage of the pipeline.",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.rejected = Counter(
            "refdiff_rejected",
            "Requests that were not answered, by reason.",
            ("reason",),
            registry=self._registry,
        )
        self.images = Counter(
            "refdiff_images",
            "Images asked about, by whether they were encoded before.",
            ("cache",),
            registry=self._registry,
        )
        self.waiting = Gauge(
            "refdiff_queue_length", "Jobs that wait for the engines.", registry=self._registry
        )
        self.live_sessions = Gauge(
            "refdiff_live_sessions", "Live sessions that are open.", registry=self._registry
        )
        self.live_frames = Counter(
            "refdiff_live_frames",
            "Frames of live sessions by what became of them, counted when a session ends.",
            ("outcome",),
            registry=self._registry,
        )
        self.cache_bytes = Gauge(
            "refdiff_cache_bytes", "Bytes of the encoded images that are kept.", registry=self._registry
        )

    def stage(self, name: Verb | Stage) -> AbstractContextManager[object]:
        """Return a context whose time is that of a stage; see `refdiff.runtime.observer`."""
        return self._timed(name)

    @contextmanager
    def _timed(self, name: Verb | Stage) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            if name not in VERBS:
                seconds = time.perf_counter() - started
                self._stage_seconds.labels(stage=name).observe(seconds)
                stages = vars(self._job)
                stages[name] = stages.get(name, 0.0) + seconds

    def take_stages(self) -> dict[str, float]:
        """Return the time of each stage in s that this thread has run since its last call."""
        stages = dict(vars(self._job))
        vars(self._job).clear()
        return stages

    def text(self) -> bytes:
        """Return all values in Prometheus' text format."""
        return bytes(generate_latest(_Labeled(self._registry, self._labels)))


class _Labeled(Collector):
    """The values of a registry with further labels."""

    def __init__(self, registry: Collector, labels: Mapping[str, str]) -> None:
        self._registry, self._labels = registry, labels

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, **self._labels}) for sample in metric.samples
            ]
            yield metric
