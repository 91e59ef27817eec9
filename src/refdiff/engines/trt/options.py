"""Options of a build, and the check that a TensorRT and a GPU support them.

In: options, the TensorRT and the GPU. Out: targets and flags of the plan, or an error that names the option.
Precision is not an option: it is in the graph (docs/precision.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from refdiff.engines.trt.device import Device
from refdiff.engines.trt.flavour import Flavour
from refdiff.engines.trt.metadata import AMPERE_PLUS, PORTABLE, Flag
from refdiff.errors import InputError, MissingDependencyError


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of a build of plans."""

    compute_capabilities: tuple[str, ...] = ()
    """GPUs to build for, such as "8.6", with TensorRT-RTX; none: a portable plan."""
    workspace_bytes: int | None = None
    """Most device memory that one layer may use while it runs; None: all of it."""
    timing_cache: Path | None = None
    """A file of kernel measurements, read if it exists and written after each build."""
    refit: bool = False
    """The built plan accepts other weights."""
    strip_weights: bool = False
    """The plan contains no weights; they are loaded from the ONNX file with it."""
    version_compatible: bool = False
    """The plan runs with later versions of the same major TensorRT."""
    hardware_compatible: bool = False
    """The plan runs on every GPU from Ampere on, at some cost in speed."""
    attention_op: bool = False
    """Attentions in half precision are built as ONNX's `Attention`: one kernel each, or the build fails."""
    expect: str | None = None
    """Hash of the manifest that the bundle must have, as `refdiff inspect` prints it; None: any bundle."""
    trust_plans: bool = False
    """Keep an equal plan that this user did not build, and let it be loaded from now on."""

    def targets(self, flavour: Flavour, device: Device | None) -> tuple[str, ...]:
        """Return the plan's targets: compute capabilities, or `PORTABLE` or `AMPERE_PLUS` alone.

        Args:
            flavour: the TensorRT that builds.
            device: this machine's GPU; `check_options` requires one where the build needs it.
        """
        if flavour.builds_without_device:
            return tuple(sorted(set(self.compute_capabilities), key=_number)) or (PORTABLE,)
        if self.hardware_compatible or device is None:
            return (AMPERE_PLUS,)
        return (device.compute_capability,)

    def flags(self) -> Mapping[str, Flag]:
        """Return all other settings that determine a plan, by name.

        TF32 is always off, so that what was checked as fp32 stays fp32. Layers keep their names and nodes,
        which costs no time and shows what was fused. `attention_op` is named only where it is set, so that
        plans that were built before it existed stay valid.
        """
        return {
            **({"attention_op": True} if self.attention_op else {}),
            "refit": self.refit,
            "strip_weights": self.strip_weights,
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
            "workspace_bytes": self.workspace_bytes,
            "tf32": False,
            "profiling_verbosity": "detailed",
        }


def check_options(options: BuildOptions, flavour: Flavour, device: Device | None) -> None:
    """Refuse options that cannot be honoured, before any work.

    Raises:
        InputError: an option that this flavour does not have, two that exclude each other, an unknown GPU.
        MissingDependencyError: there is no GPU, and this build needs one.
    """
    check_supported(options, flavour)
    if options.refit and options.strip_weights:
        raise InputError("got --refit and --strip-weights, expected one; a stripped plan is refitted anyway")
    if options.attention_op and options.strip_weights:
        raise InputError(
            "got --attention-op and --strip-weights, expected one; the weights of a stripped plan come from "
            "the bundle's own graph, which has no Attention"
        )
    known = flavour.compute_capabilities()
    for wanted in options.compute_capabilities:
        if wanted not in known:
            raise InputError(
                f"{flavour.title} cannot build for compute capability {wanted!r}, "
                f"it can for: {', '.join(known)}"
            )
    if device is None:
        _check_without_device(options, flavour)


def check_supported(options: BuildOptions, flavour: Flavour) -> None:
    """Refuse options that this TensorRT does not have.

    Raises:
        InputError: names the first of them.
    """
    for option, name in given_options(options):
        reason = flavour.why_not(option)
        if reason is not None:
            raise InputError(f"got {name}, but {reason}; leave it out")


def given_options(options: BuildOptions) -> Iterator[tuple[str, str]]:
    """Yield the options that are set: the name for `Flavour.why_not`, and that of the command line."""
    given = {
        "compute_capability": bool(options.compute_capabilities),
        "timing_cache": options.timing_cache is not None,
        "refit": options.refit,
        "strip_weights": options.strip_weights,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "attention_op": options.attention_op,
    }
    for option, is_given in given.items():
        if is_given:
            yield option, f"--{option.replace('_', '-')}"


def _check_without_device(options: BuildOptions, flavour: Flavour) -> None:
    if not flavour.builds_without_device:
        raise MissingDependencyError(
            f"{flavour.title} builds on the GPU it builds for, and this machine has none (or no driver); "
            "build on the device, or for RTX GPUs with: --flavour tensorrt-rtx"
        )
    for is_given, name in ((options.refit, "--refit"), (options.strip_weights, "--strip-weights")):
        if is_given:  # observed with 1.7.1: its compiler loads refittable kernels into a driver
            raise MissingDependencyError(
                f"{flavour.title} needs a GPU for {name}, and this machine has none (or no driver); "
                "build on the device, or leave it out"
            )


def _number(compute_capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in compute_capability.split("."))
