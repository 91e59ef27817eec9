"""One interface to TensorRT 10.3, 10.x, 11.x and TensorRT-RTX: the only module that knows how they differ.

In: a name. Out: a `Flavour`, which holds the imported package and reports its features by looking for the
attribute (never by comparing versions). Features that a package has but ignores are listed in `_IGNORED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from refdiff.contracts.optional import install_line
from refdiff.errors import EngineError, InputError, MissingDependencyError

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    # The first re-exports the second; an environment made of wheels alone has only the second.
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Flavour -> its Python package; the first that is installed is taken."""

FLAVOURS = tuple(PACKAGES)

_IGNORED: Mapping[str, Mapping[str, str]] = {
    "tensorrt": {
        "compute_capability": "TensorRT builds for the GPU it runs on",
    },
    # Observed with 1.7.1 on a machine without a GPU; the attributes exist nevertheless.
    "tensorrt-rtx": {
        "timing_cache": "TensorRT-RTX ignores timing caches",
        "hardware_compatible": "TensorRT-RTX plans run on Ampere and later GPUs unless some are named",
        "version_compatible": "TensorRT-RTX has no lean runtime (libnvinfer_lean)",
    },
}
"""Flavour -> an option that it ignores -> reason; such an option is refused by name."""


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """One installed TensorRT."""

    name: str
    """One of `FLAVOURS`."""
    module: Any
    """The imported package."""

    @property
    def version(self) -> str:
        """The package's version, such as 10.3.0 or 1.7.1.116."""
        return str(self.module.__version__)

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{self.name} {self.version}"

    @property
    def builds_without_device(self) -> bool:
        """True if it can build plans for other GPUs than the installed one."""
        return self.name == "tensorrt-rtx" and bool(self.compute_capabilities())

    def why_not(self, option: str) -> str | None:
        """Return the reason why an option (a field of `BuildOptions`) has no effect; None if it has one.

        Args:
            option: such as "timing_cache".
        """
        if option in _IGNORED[self.name]:
            return _IGNORED[self.name][option]
        builder_flag = _FLAGS_OF.get(option)
        if builder_flag is not None and self.builder_flag(builder_flag) is None:
            return f"{self.title} has no builder flag {builder_flag}"
        owner = _OWNERS_OF.get(option)
        if owner is not None and not hasattr(self.module, owner):
            return f"{self.title} has no {owner}{_SINCE.get(owner, '')}"
        return None

    def builder_flag(self, name: str) -> Any | None:
        """Return a member of `BuilderFlag`, None if this version has none of that name."""
        return getattr(self.module.BuilderFlag, name, None)

    def network_flags(self) -> int:
        """Return the flags that create a strongly typed network.

        Raises:
            EngineError: this version chooses types itself, and that cannot be switched off.
        """
        strongly_typed = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        if strongly_typed is not None:
            return 1 << int(strongly_typed)
        if self.builder_flag("FP16") is not None:
            raise EngineError(
                f"{self.title} cannot keep the types of a graph (no STRONGLY_TYPED networks), expected "
                "TensorRT 10.3 or newer; upgrade TensorRT"
            )
        return 0  # newer versions have only strongly typed networks

    def compute_capabilities(self) -> Mapping[str, Any]:
        """Return the GPUs to build for by name, "8.6" -> member; empty if it builds for this one only."""
        known = getattr(self.module, "ComputeCapability", None)
        if known is None or not hasattr(self.module.IBuilderConfig, "set_compute_capability"):
            return {}
        names = [name for name in dir(known) if name.startswith("SM") and name[2:].isdigit()]
        ordered = sorted(names, key=lambda name: int(name[2:]))
        return {f"{name[2:-1]}.{name[-1]}": getattr(known, name) for name in ordered}

    def supports(self, compute_capability: str) -> bool:
        """Return whether this TensorRT runs on a GPU, as far as it says.

        TensorRT-RTX lists the GPUs that it supports. Observed: 1.7 refuses a portable plan on 9.0, which it
        does not list.
        """
        known = self.compute_capabilities()
        return self.name != "tensorrt-rtx" or not known or compute_capability in known


INSTALL = {
    "tensorrt": f"on a Jetson it comes with JetPack, elsewhere: {install_line('trt')}",
    "tensorrt-rtx": f"{install_line('rtx')} (x86-64 only)",
}
"""Flavour -> how to install it."""
_FLAGS_OF = {"refit": "REFIT", "strip_weights": "STRIP_PLAN", "version_compatible": "VERSION_COMPATIBLE"}
_OWNERS_OF = {
    "hardware_compatible": "HardwareCompatibilityLevel",
    "compute_capability": "ComputeCapability",
    "attention_op": "IAttention",
}
_SINCE = {"IAttention": ", expected TensorRT 10.14 or later, which reads ONNX's Attention"}


def load_flavour(name: str) -> Flavour:
    """Import a TensorRT.

    Args:
        name: one of `FLAVOURS`.

    Raises:
        InputError: no such flavour.
        MissingDependencyError: its package is not installed.
    """
    if name not in PACKAGES:
        raise InputError(f"unknown flavour {name!r}; choose one of: auto, {', '.join(FLAVOURS)}")
    package = next((each for each in PACKAGES[name] if find_spec(each) is not None), PACKAGES[name][0])
    try:
        return Flavour(name=name, module=import_module(package))
    except ModuleNotFoundError as error:
        if error.name != package:  # a broken installation keeps its traceback
            raise
        raise MissingDependencyError(
            f"{name} needs the package {package}, which is not installed; {INSTALL[name]}"
        ) from error


def choose_flavour(name: str = "auto", *, has_device: bool) -> tuple[Flavour, str]:
    """Load the named TensorRT, or the one that suits this machine.

    Args:
        name: one of `FLAVOURS`, or "auto".
        has_device: whether this machine has a usable GPU.

    Returns:
        The flavour, and the reason for it.

    Raises:
        InputError: no such flavour.
        MissingDependencyError: it is not installed, or none is.
    """
    if name != "auto":
        return load_flavour(name), "asked for"
    installed = [name for name, packages in PACKAGES.items() if any(map(find_spec, packages))]
    if not installed:
        raise MissingDependencyError(
            "no TensorRT is installed; on a Jetson it comes with JetPack, with a GPU: "
            f"{install_line('trt')}, with an RTX GPU or none: {install_line('rtx')}"
        )
    if len(installed) == 1:
        return load_flavour(installed[0]), "the only one installed"
    if has_device:
        return load_flavour("tensorrt"), "both are installed, and this machine has a GPU to build on"
    return load_flavour("tensorrt-rtx"), "it builds without a GPU, and this machine has none"


def member_name(member: Any) -> str:
    """Return the name of an enumeration's member; those of pybind11 have one, stand-ins may not."""
    return str(getattr(member, "name", member))
