"""What every test gets: tests that lack their package or device are skipped, and say so."""

import copy
import ctypes
import functools
import gc
import importlib
import importlib.util
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import StackSummary
from typing import Any

import hypothesis
import numpy
import pytest

import refdiff
from tests.support.fake_machine import install_gpu, load_library
from tests.support.made_once import CONVERSION_SOURCES, EXPORT_SOURCES, made_once

# Property tests share small machines with model runs: a slow example is no failure, a wrong one is.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each worker; torch reads this when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST_FIRST = (
    "tests/export/test_bring_your_own.py",
    "tests/export/test_small_encoders.py",
    "tests/engines/test_rtx_builds.py",
    "tests/batch/test_ray_cluster.py",
    "tests/verification/test_check.py",
    "tests/calibration/test_convert.py",
    "tests/models/test_small_sam.py",
    "tests/serve/test_page.py",
    "tests/serve/test_live_page.py",
    "tests/evaluation/test_evaluate.py",
    "tests/cli/test_bad_input.py",
    "tests/verification/test_check_reference.py",
    "tests/models/test_ldm.py",
    "tests/models/test_diffusion.py",
    "tests/miniature/test_stack.py",
    "tests/benchmarks/test_faults.py",
    "tests/runtime/test_pipeline_on_mini.py",
    "tests/batch/test_folder.py",
    "tests/calibration/test_calibrate.py",
    "tests/export/test_export.py",
    "tests/miniature/test_training.py",
    "tests/cli/test_camera.py",
    "tests/cli/test_cli.py",
    "tests/arch/test_network.py",
    "tests/arch/test_platforms.py",
    "tests/runtime/test_memory.py",
    "tests/cli/test_entry.py",
    "tests/evaluation/test_tune.py",
    "tests/runtime/test_pipeline.py",
    "tests/calibration/test_output_tolerance.py",
    "tests/calibration/test_fp32_proposals.py",
    "tests/calibration/test_audit.py",
    "tests/evaluation/test_fit_confidence.py",
    "tests/calibration/test_converted_bundle.py",
    "tests/runtime/test_clip_tower.py",
    "tests/passes/test_half_precision.py",
    "tests/batch/test_training_set.py",
    "tests/calibration/test_sensitivity.py",
    "tests/calibration/test_bisect.py",
    "tests/camera/sources/test_process.py",
    "tests/engines/test_factory.py",
    "tests/evaluation/test_kills.py",
    "tests/serve/test_attacks.py",
)
"""Files that take long; whole files are handed to the workers, and the last one should be a short one."""


SLOW_FIXTURES = frozenset({"tiny_bundle", "mini_feeds", "mini_in", "recorded"})
"""Fixtures that take seconds to make: what needs one is `slow` by that alone."""


@functools.cache
def has_nvidia_device() -> bool:
    """Ask the CUDA driver itself: a Jetson has no nvidia-smi, and the lean environment has no torch."""
    try:
        driver = load_library("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files whose tests are not wanted by their marks: importing what they use takes seconds."""
    unwanted = [mark for mark in ("needs_torch", "slow") if f"not {mark}" in config.getoption("markexpr")]
    if not unwanted or collection_path.suffix != ".py":
        return None
    text = collection_path.read_text(encoding="utf-8")
    marked = re.search(rf"^pytestmark = .*\b({'|'.join(unwanted)})\b", text, re.MULTILINE)
    return True if marked else None


def pytest_itemcollected(item: pytest.Item) -> None:
    if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)  # after pytest-randomly has shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(rank)))


_NEW_LOGGER: tuple[int, bool, tuple[logging.Handler, ...]] = (logging.NOTSET, True, ())


def logger_states() -> dict[str, tuple[int, bool, tuple[logging.Handler, ...]]]:
    """Return level, propagation and handlers of refdiff's loggers."""
    return {
        name: (logger.level, logger.propagate, tuple(logger.handlers))
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and name.startswith("refdiff")
    }


_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name)
]


_EXEMPT = ("PYTEST_CURRENT_TEST", "RAY_")
"""Beginnings of variables that pytest sets, and `--ray`, for the whole process."""


def process_state() -> dict[str, Any]:
    """Return what a test shares with those that follow in its process, besides loggers."""
    torch = sys.modules.get("torch")
    return {
        "environment": {name: value for name, value in os.environ.items() if not name.startswith(_EXEMPT)},
        "working directory": os.getcwd(),  # noqa: PTH109 - for each test, twice
        "signal handlers": [signal.getsignal(number) for number in _SIGNALS],
        "garbage collection": (gc.isenabled(), gc.get_threshold()),
        "handler of exceptions": sys.excepthook,  # that of threads is pytest's own, which older ones renew
        "numpy's errors": numpy.geterr(),
        "time-out of sockets": socket.getdefaulttimeout(),
        "threads of torch": getattr(torch, "get_num_threads", int)(),
    }


def restore_process(before: dict[str, Any]) -> None:
    """Undo what is most often left, so that one test fails, not all that follow."""
    for name in [name for name in os.environ if not name.startswith(_EXEMPT)]:
        del os.environ[name]
    os.environ.update(before["environment"])
    os.chdir(before["working directory"])
    restore_handlers(before)


def restore_handlers(before: dict[str, Any]) -> None:
    for number, handler in zip(_SIGNALS, before["signal handlers"], strict=True):
        if handler is not None:  # None: not installed by Python
            signal.signal(number, handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.set_threshold(20_000)
    gc.freeze()  # a million objects of torch and of the tests themselves, which no collection need visit
    if "not needs_torch" in session.config.getoption("markexpr") and "torch" in sys.modules:
        raise pytest.UsageError(
            "a test file imports torch, which takes seconds in every process; give it `pytestmark = "
            "pytest.mark.needs_torch`, or import inside the tests that need it"
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_torch") and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: pip install '.[export]'")
    if item.get_closest_marker("needs_gpu") and not has_nvidia_device():
        pytest.skip("no NVIDIA device")


@pytest.fixture(autouse=True, scope="session")
def no_gpu() -> Iterator[None]:
    """Show no GPU but to tests of `tests/gpu`: everything comes out the same on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        install_gpu(patch, None)
        yield


@pytest.fixture(autouse=True, scope="session")
def fast_exporter() -> Iterator[None]:
    """Spare `torch.onnx.export` work that changes no result, a third of the time of a small graph.

    It reads every operator's function again for each graph, tries every pattern on every node, and records
    the lines of code that each node is from, which refdiff drops.
    """
    if "refdiff.export.onnx_export" not in sys.modules:  # no test of the exporter was collected
        yield
        return
    try:
        apis = importlib.import_module("torch.onnx._internal._lazy_import").onnxscript_apis
        registry = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
        rules = importlib.import_module("onnxscript.rewriter._rewrite_rule").RewriteRule
        tracebacks = importlib.import_module("torch.utils._traceback").CapturedTraceback
        read, fill, rewrite = apis.get_torchlib_ops, registry.from_torchlib, rules.try_rewrite
    except (ImportError, AttributeError):  # another torch or onnxscript, which works elsewhere
        yield
        return
    read, fill = functools.cache(read), functools.cache(fill)

    def filled(**options: int) -> object:
        """Return a registry of its own: the exporter adds the graph's own operators to it."""
        new = copy.copy(fill(**options))
        new.functions = {target: list(functions) for target, functions in new.functions.items()}
        return new

    @functools.cache
    def operator_of(rule: Any) -> Any:
        """The operator of a pattern's first output, which is where a match begins; None for any."""
        try:
            return rule._target_pattern.output_nodes[0].op_identifier()
        except AttributeError:  # another onnxscript
            return None

    def rewrite_if_it_can(rule: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if operator_of(rule) not in (None, node.op_identifier()):
            return None
        return rewrite(rule, model, graph, node, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apis, "get_torchlib_ops", read)
        patch.setattr(registry, "from_torchlib", staticmethod(filled))
        patch.setattr(rules, "try_rewrite", rewrite_if_it_can)
        patch.setattr(tracebacks, "summary", lambda self: StackSummary())
        yield


@pytest.fixture(autouse=True, scope="session")
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Record plans that tests build in a folder of the run, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def same_loggers() -> Iterator[None]:
    """Fail a test that leaves refdiff's loggers changed: others that read them would fail for it."""
    before = logger_states()
    yield
    after = logger_states()
    changed = [name for name, state in after.items() if state != before.get(name, _NEW_LOGGER)]
    for name in changed:  # so that one test fails, not all that follow
        logger = logging.getLogger(name)
        logger.level, logger.propagate, handlers = before.get(name, _NEW_LOGGER)
        logger.handlers[:] = handlers
    assert not changed, f"the test left loggers changed: {changed}"


@pytest.fixture(autouse=True)
def same_process() -> Iterator[None]:
    """Fail a test that leaves its process changed: one that follows would fail for it, or pass."""
    before, modules = process_state(), len(sys.modules)
    yield
    after = process_state()
    if len(sys.modules) > modules:  # torch, cv2 and others change these when they are imported
        for name in ("environment", "handler of exceptions", "threads of torch"):
            before[name] = after[name]
    if "ray" in sys.modules:  # its driver replaces the handler of SIGTERM, and leaves its own
        restore_handlers(before)
        after["signal handlers"] = before["signal handlers"]
    changed = [name for name, state in after.items() if state != before[name]]
    if changed:
        restore_process(before)
    assert not changed, "; ".join(
        f"the test left the {each}: {_difference(before[each], after[each])}" for each in changed
    )


def _difference(before: Any, after: Any) -> str:
    if not isinstance(before, dict):
        return f"{after}, before it was {before}"
    names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return ", ".join(f"{name}={after.get(name)!r}, before it was {before.get(name)!r}" for name in names)


@pytest.fixture(scope="session")
def mini_bundle() -> Path:
    """The miniature's bundle, which is part of the package; read it, copy it, do not change it."""
    return Path(refdiff.__file__).parent / "miniature" / "bundle"


@pytest.fixture(scope="session")
def tiny_bundle(request: pytest.FixtureRequest) -> Path:
    """A real bundle of the tiny stack; read it, copy it, do not change it."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: pip install '.[export]'")

    def make(output: Path) -> None:
        from refdiff.export.export import export_stack
        from tests.support.calm_stack import calm_stack

        export_stack(calm_stack(), output=output, progress=lambda line: None)

    stacks = ("tests/support/calm_stack.py", "tests/support/tiny_stack.py")
    return made_once(request.config.cache, "tiny", sources=(*EXPORT_SOURCES, *stacks), make=make)


@pytest.fixture(scope="session")
def mini_feeds(request: pytest.FixtureRequest) -> Path:
    """What the miniature's graphs were fed on one scene; read it, do not change it."""

    def make(output: Path) -> None:
        from refdiff.calibration.calibrate import calibrate
        from refdiff.data.synthetic import calibration_scenes

        calibrate("mini", calibration_scenes(1), output=output)

    return made_once(request.config.cache, "feeds", sources=CONVERSION_SOURCES, make=make)


@pytest.fixture(scope="session")
def mini_in(request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Precision -> the miniature's bundle in it, in a folder of its name; read it, do not change it.

    A second argument names another built-in model, which needs a precision without feeds.
    """

    def bundle(precision: str, model: str = "mini") -> Path:
        def make(output: Path) -> None:
            from refdiff.calibration.convert import PrecisionOptions, convert

            options = PrecisionOptions(precision=precision)
            if precision in ("int8", "fp8"):  # untimed: the test that asks first may have replaced the device
                feeds = request.getfixturevalue("mini_feeds")
                options = PrecisionOptions(precision=precision, feeds=feeds, timed=False)
            convert(model, options, output=output)

        name = precision if model == "mini" else f"{model}-{precision}"
        return made_once(request.config.cache, name, sources=CONVERSION_SOURCES, make=make)

    return bundle
