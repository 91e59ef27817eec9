"""From the name of a bundle to something that segments."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import bundle_cautions, check_trained, find_bundle
from refdiff.contracts.onnx_file import read_onnx
from refdiff.contracts.options import DEFAULT_BACKEND, DEFAULT_RUN, BackendOptions, Options, RunOptions
from refdiff.contracts.session import Measure, SessionFactory
from refdiff.engines.factory import BackendSessions, open_sessions
from refdiff.engines.interruption import Gap, GapSessions
from refdiff.errors import InputError
from refdiff.runtime.confidence import Probe
from refdiff.runtime.observer import Observer
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.tokenizer import Tokenizer

_LOGGER = logging.getLogger(__name__)


def load(
    path: Path | str, *, options: RunOptions = DEFAULT_RUN, backend: BackendOptions = DEFAULT_BACKEND
) -> Segmenter:
    """Open a bundle for segmenting; use the result in a `with` block.

    Args:
        path: the bundle's folder, or "mini" for the built-in one.
        options: what is computed.
        backend: where and how the graphs run.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: an unknown option, or random weights that are not allowed.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing.
        EngineError: a TensorRT back-end was asked for, and the bundle has no plan that fits.
    """
    bundle = find_bundle(path, expect=options.expect)
    check_trained(bundle, allow_random_weights=options.allow_random_weights)
    return segmenter_of(bundle, open_backend(bundle, backend), options.pipeline_options(bundle.spec))


def open_backend(
    bundle: Bundle, backend: BackendOptions = DEFAULT_BACKEND, measure: Measure | None = None
) -> BackendSessions:
    """Open the sessions of a bundle; `measure` names what they are opened to measure.

    Raises:
        InputError: an unknown back-end, or a memory budget that cannot be read.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing.
        EngineError: a TensorRT back-end was asked for, and the bundle has no plan that fits.
    """
    if not isinstance(backend, BackendOptions):
        raise InputError(
            f"got backend {backend!r}, expected BackendOptions, such as BackendOptions(name='ort-cpu')"
        )
    sessions = open_sessions(
        bundle, backend=backend.name, threads=backend.threads, memory=backend.memory, measure=measure
    )
    _LOGGER.info("back-end %s: %s", sessions.backend, sessions.reason)
    if backend.run_limit_s is None:
        return sessions
    from refdiff.engines.interruption import WatchedSessions

    return WatchedSessions(sessions, backend.run_limit_s)


def segmenter_of(
    bundle: Bundle,
    sessions: SessionFactory,
    options: Options,
    observer: Observer | None = None,
    probe: Probe | None = None,
) -> Segmenter:
    """Build the numpy pipeline over a bundle's tables and the given sessions."""
    return Segmenter(
        sessions=sessions,
        spec=bundle.spec,
        options=options,
        tokenizer=Tokenizer(bundle.tokenizer_json(), bundle.spec.context_length),
        positions=bundle.clip_positions(),
        prompts=bundle.prompt_vectors(),
        cautions=bundle_cautions(bundle),
        confidence=bundle.calibration().models.get(options.key),
        probe=probe,
        observer=observer,
        read_graph=lambda name: read_onnx(bundle.graph_path(name)),
    )


def spare_threads() -> int:
    """Return the number of cores but one, and at least 1."""
    return max(1, (os.cpu_count() or 1) - 1)


class Engines:
    """The engines of one bundle, opened once, and segmenters of any options on them.

    For one thread, whose work can be interrupted between two graphs.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        options: what is computed at first; also says which bundles are accepted.
        backend: where and how the graphs run; without a number of threads, one core is left to what follows
            the masks.
        gap: called before each run of a graph.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: an unknown option, or random weights that are not allowed.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing.
        EngineError: a TensorRT back-end was asked for, and the bundle has no plan that fits.
    """

    def __init__(self, bundle: Path | str, options: RunOptions, backend: BackendOptions, gap: Gap) -> None:
        self._bundle = find_bundle(bundle, expect=options.expect)
        check_trained(self._bundle, allow_random_weights=options.allow_random_weights)
        backend = replace(backend, threads=backend.threads or spare_threads())
        self.sessions = GapSessions(open_backend(self._bundle, backend), gap)
        self._segmenters: dict[str, Segmenter] = {}

    def segmenter(self, options: RunOptions) -> Segmenter:
        """Return the segmenter of these options, built at its first use on the engines that are open.

        Raises:
            InputError: an unknown option.
        """
        wanted = options.pipeline_options(self._bundle.spec)
        if repr(wanted) not in self._segmenters:
            self._segmenters[repr(wanted)] = segmenter_of(self._bundle, self.sessions, wanted)
        return self._segmenters[repr(wanted)]

    def close(self) -> None:
        """Close the sessions; calling it twice is fine."""
        self.sessions.close()
