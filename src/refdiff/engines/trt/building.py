"""Build a plan file from an ONNX file.

In: a graph's file, its shapes and options. Out: the plan's bytes in a file that the caller names, and its
memory and attentions. The identity and the place of plans are in `metadata` and `plan_store`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from refdiff.contracts.atomic_io import report_write_errors, sync, write_file
from refdiff.engines.trt.attention_blocks import (
    AttentionBlock,
    attention_blocks,
    layers_in_log,
    layers_of_engine,
    mark_fused,
)
from refdiff.engines.trt.flavour import Flavour
from refdiff.engines.trt.monitor import (
    BuildLog,
    Watch,
    activation_bytes,
    last_error,
    make_monitor,
    run_stoppable,
)
from refdiff.engines.trt.options import BuildOptions
from refdiff.engines.trt.parsing import Parsed, check_parsed, parse
from refdiff.engines.trt.runtime import Library, map_plan
from refdiff.engines.trt.shapes import Shape, ShapeProfile
from refdiff.errors import EngineError, InputError

_CURE = "see the build log, and which operators are at risk with: refdiff build BUNDLE --lint"


@dataclass(frozen=True, kw_only=True)
class BuildTask:
    """One plan to build."""

    graph: str
    onnx: Path
    shapes: tuple[ShapeProfile, ...]
    options: BuildOptions


@dataclass(frozen=True, kw_only=True)
class Built:
    """Properties of a plan that was built."""

    activation_bytes: int | None
    """Device memory of one context in bytes; None if TensorRT did not say."""
    attention: tuple[AttentionBlock, ...]


def build_plan(flavour: Flavour, task: BuildTask, target: Path, log: BuildLog, watch: Watch) -> Built:
    """Build a plan into a file.

    Args:
        flavour: the TensorRT to build with.
        task: what to build.
        target: the file to write; it is valid only if this returns.
        log: receives every message.
        watch: receives the progress; an interrupted wait stops the build.

    Raises:
        EngineError: the parser or the builder refused, or the graph is not of this contract.
        InputError: the plan cannot be written.
        KeyboardInterrupt: Ctrl-C; the build has ended.
    """
    return run_stoppable(lambda: _build(flavour, task, target, log, watch), watch.stop)


def _build(flavour: Flavour, task: BuildTask, target: Path, log: BuildLog, watch: Watch) -> Built:
    parsed = parse(flavour, task.onnx, log, attention_op=task.options.attention_op)
    check_parsed(parsed, flavour, task.graph)
    built = build_parsed(flavour, parsed, task, target, log, watch)
    if task.options.attention_op:
        _check_fused(flavour, task.graph, built.attention)
    return built


def _check_fused(flavour: Flavour, graph: str, attention: Sequence[AttentionBlock]) -> None:
    """Raise if an attention is not one kernel and nothing explains it.

    Raises:
        EngineError: names the first of them.
    """
    lost = [block.softmax for block in attention if block.fused is False and not block.obstacles]
    if lost:
        raise EngineError(
            f"{flavour.title} does not fuse {len(lost)} of the {len(attention)} attentions of {graph}, the "
            f"first is {lost[0]}; build this graph without --attention-op"
        )


def build_parsed(
    flavour: Flavour, parsed: Parsed, task: BuildTask, target: Path, log: BuildLog, watch: Watch
) -> Built:
    """Build a plan of a parsed network, which may have been changed since; see `build_plan`."""
    config = _configure(flavour, parsed, task.options)
    _add_profiles(parsed, config, task.shapes, task.graph)
    monitor = make_monitor(flavour, watch)  # TensorRT keeps no reference of its own
    if monitor is not None:
        config.progress_monitor = monitor
    with report_write_errors(target):
        with target.open("wb") as stream:
            built = _serialize(flavour, parsed, config, stream)
        sync(target)
    if watch.failure is not None:
        raise watch.failure
    if not built:
        raise EngineError(f"{flavour.title} cannot build {task.graph}: {last_error(log)}; {_CURE}")
    if task.options.timing_cache is not None:
        _write_timing_cache(config, task.options.timing_cache)
    return Built(activation_bytes=activation_bytes(log), attention=_attention(flavour, parsed, target, log))


def _attention(flavour: Flavour, parsed: Parsed, plan: Path, log: BuildLog) -> tuple[AttentionBlock, ...]:
    """Return the graph's attentions and which the plan fused, by the log or else the plan's inspector."""
    blocks = attention_blocks(parsed.network)
    layers = layers_in_log(log.layers)
    if blocks and not layers:
        with suppress(EngineError):  # without a driver it cannot be loaded
            engine = Library(flavour.module).load(map_plan(plan), plan.name)
            layers = layers_of_engine(flavour.module, engine)
    return mark_fused(blocks, layers)


def _configure(flavour: Flavour, parsed: Parsed, options: BuildOptions) -> Any:
    trt, config = flavour.module, parsed.builder.create_builder_config()
    tf32 = flavour.builder_flag("TF32")
    if tf32 is not None:
        config.clear_flag(tf32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names what each kernel computes
    for wanted, name in (
        (options.refit, "REFIT"),
        (options.strip_weights, "STRIP_PLAN"),
        (options.version_compatible, "VERSION_COMPATIBLE"),
    ):
        if wanted:
            config.set_flag(flavour.builder_flag(name))
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    _set_capabilities(flavour, config, options.compute_capabilities)
    if options.timing_cache is not None:
        _read_timing_cache(config, options.timing_cache)
    return config


def _set_capabilities(flavour: Flavour, config: Any, wanted: Sequence[str]) -> None:
    if not wanted:
        return
    members, names = flavour.compute_capabilities(), sorted(set(wanted))
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(members[name], index):
            raise EngineError(f"{flavour.title} refuses compute capability {name}; leave it out")


def _add_profiles(parsed: Parsed, config: Any, shapes: Sequence[ShapeProfile], graph: str) -> None:
    """Add an optimization profile for each set of sizes; a network without dynamic axes takes none."""
    network = parsed.network
    inputs = {
        tensor.name: tuple(tensor.shape) for tensor in map(network.get_input, range(network.num_inputs))
    }
    for profile in shapes:
        _check_inputs(graph, inputs, profile)
    if not any(-1 in shape for shape in inputs.values()):
        return
    for profile in shapes:
        added = parsed.builder.create_optimization_profile()
        for name, each in profile.items():
            if -1 in inputs[name]:
                added.set_shape(name, each.least, each.usual, each.most)
        if config.add_optimization_profile(added) < 0:
            raise EngineError(f"TensorRT refuses the shapes {profile} of {graph}; export again")


def _check_inputs(graph: str, inputs: Mapping[str, Shape], profile: ShapeProfile) -> None:
    if set(inputs) != set(profile):
        raise EngineError(
            f"{graph}.onnx has inputs {', '.join(inputs)}, expected {', '.join(profile)}; export again"
        )
    for name, shape in inputs.items():
        wanted = profile[name].usual
        fits = len(shape) == len(wanted)
        if not fits or any(size not in (-1, want) for size, want in zip(shape, wanted, strict=True)):
            raise EngineError(
                f"{graph}.onnx takes {name} as {list(shape)}, the bundle's sizes ask for {list(wanted)}; "
                "export again"
            )


def _serialize(flavour: Flavour, parsed: Parsed, config: Any, stream: BinaryIO) -> bool:
    """Build directly into the file where TensorRT can, which saves a copy of the plan in memory."""
    builder = parsed.builder
    if not hasattr(builder, "build_serialized_network_to_stream"):
        plan = builder.build_serialized_network(parsed.network, config)
        if plan is not None:
            stream.write(plan)
        return plan is not None
    base: Any = flavour.module.IStreamWriter
    failed: list[OSError] = []

    class Writer(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def write(self, data: bytes) -> int:
            try:
                return stream.write(data)
            except OSError as error:  # must not cross TensorRT's frames
                failed.append(error)
                return 0

    done = bool(builder.build_serialized_network_to_stream(parsed.network, config, Writer()))
    if failed:
        raise failed[0]
    return done


def _read_timing_cache(config: Any, path: Path) -> None:
    """Load earlier measurements; those of another TensorRT or GPU are refused."""
    try:
        before = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"cannot read the timing cache {path}: {error.strerror or error}") from error
    cache = config.create_timing_cache(before)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise InputError(
            f"the timing cache {path} is of another TensorRT or GPU; name another file (--timing-cache)"
        )


def _write_timing_cache(config: Any, path: Path) -> None:
    data = config.get_timing_cache().serialize()
    with report_write_errors(f"the timing cache {path}"):
        write_file(path, data)
