"""Test one back-end on one bundle: `python -m refdiff.diagnostics.smoke_test BUNDLE BACKEND` prints JSON.

The smallest graph is opened as `refdiff segment` opens it, run on its recorded feeds, and compared with the
record. It runs in a separate process, because an incompatible driver or library can crash the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from refdiff.contracts.bundle import Bundle, open_bundle
from refdiff.contracts.optional import install_line
from refdiff.contracts.parity import relative_error, select_recorded
from refdiff.contracts.session import SessionFactory
from refdiff.engines.factory import open_sessions
from refdiff.engines.trt.device import Device, find_device
from refdiff.engines.trt.flavour import Flavour, load_flavour
from refdiff.engines.trt.open import TENSORRT, load_environment, open_plans
from refdiff.engines.trt.plans import find_plans
from refdiff.errors import EngineError, RefdiffError


@dataclass(frozen=True, kw_only=True)
class SmokeTest:
    """Result of testing one back-end."""

    runs: bool
    said: str
    """Description of what ran, or the reason why nothing did, with the fix after a semicolon."""
    can_build: bool = False
    """True if only plans are missing."""
    fitting: tuple[str, ...] = ()
    """Graphs with an intact plan that fits TensorRT and the GPU."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Graph -> reason why it has none."""


def run_smoke_test(bundle: Bundle, backend: str) -> SmokeTest:
    """Run a graph with a back-end.

    Args:
        bundle: an opened one.
        backend: by name; not "auto".
    """
    try:
        if backend in TENSORRT:
            return _test_plans(bundle, backend)
        with contextlib.closing(open_sessions(bundle, backend=backend)) as sessions:
            return SmokeTest(runs=True, said=_run(bundle, sessions, bundle.manifest.graphs))
    except RefdiffError as error:
        return SmokeTest(runs=False, said=str(error))


def graph_bytes(bundle: Bundle, graph: str) -> int:
    """Return the bytes of a graph's files, which are about its weights."""
    return sum(bundle.manifest.files[name].size_bytes for name in bundle.manifest.graphs[graph].files)


def _test_plans(bundle: Bundle, backend: str) -> SmokeTest:
    flavour, device = load_flavour(backend), find_device()
    found, refused = find_plans(bundle, flavour, device, verify="hash")
    test = SmokeTest(runs=False, said="", fitting=tuple(found), refused=refused)
    try:
        load_environment(backend)
        _check_known(flavour, device)
    except RefdiffError as error:
        return dataclasses.replace(test, said=str(error))
    test = dataclasses.replace(test, can_build=True)
    if refused:
        return dataclasses.replace(test, said=next(iter(refused.values())))
    try:
        with contextlib.closing(
            open_plans(bundle, backend, reason="a smoke test", cuda_graphs=False)
        ) as sessions:
            said = _run(bundle, sessions, found)
            memory = "" if sessions.memory is None else f", memory: {sessions.memory.reason}"
    except RefdiffError as error:
        return dataclasses.replace(test, said=str(error))
    return dataclasses.replace(test, runs=True, said=said + memory)


def _check_known(flavour: Flavour, device: Device | None) -> None:
    """Refuse a GPU that TensorRT does not support: its plans would be built and then not load."""
    if device is not None and not flavour.supports(device.compute_capability):
        raise EngineError(
            f"{flavour.title} does not know compute capability {device.compute_capability} ({device.name}); "
            f"use --backend ort-cuda, or TensorRT: {install_line('trt')}"
        )


def _run(bundle: Bundle, sessions: SessionFactory, graphs: Iterable[str]) -> str:
    """Run the smallest of these graphs; return what ran, for messages."""
    golden = bundle.golden()
    recorded = [name for name in graphs if name in golden]
    if not recorded:
        raise EngineError(f"{bundle.path} has no recorded run to repeat; export it again")
    graph = min(recorded, key=lambda name: graph_bytes(bundle, name))
    feeds, expected = golden[graph]
    outputs = sessions.open(graph).run(feeds, list(expected))
    error = max(
        relative_error(select_recorded(outputs[name], record), record) for name, record in expected.items()
    )
    if math.isinf(error):
        raise EngineError(f"{graph} returned values that are not finite; see: refdiff check {bundle.path}")
    return f"ran {graph}, {error:.0e} off its record"


if __name__ == "__main__":
    _, _path, _backend = sys.argv
    print(json.dumps(dataclasses.asdict(run_smoke_test(open_bundle(_path, verify="size"), _backend))))  # noqa: T201 - the calling process reads it
