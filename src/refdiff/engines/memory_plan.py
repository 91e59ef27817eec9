"""Decide how much of a bundle is on the device at once, from sizes alone, before anything is loaded.

In: each engine's bytes, and the free memory or the user's budget. Out: one of three ways to hold them.

    resident   everything stays: all weights, all activations
    shared     all weights stay; one buffer serves whichever graph runs, as large as the largest needs
    staged     one graph at a time: load, run, unload

In all three, inputs and outputs of every graph stay, because graphs pass them to each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from refdiff.errors import EngineError, InputError

Holding = Literal["resident", "shared", "staged"]
HOLDINGS: tuple[Holding, ...] = get_args(Holding)
"""All ways, fastest first."""

RESERVE_BYTES = 256 << 20
"""Free memory left to CUDA itself, for kernels that are loaded later and for fragmentation."""

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
}

_EXPECTED = 'expected a size such as "8GB" or "900MiB"'


@dataclass(frozen=True, kw_only=True)
class EngineSize:
    """Device memory that one engine needs, in bytes."""

    name: str
    weights: int
    """Weights and code of the plan."""
    activations: int
    """Most activations of any shape that it was built for."""
    tensors: int
    """Inputs and outputs at their largest."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The chosen way."""

    holding: Holding
    peak: int
    """Most bytes on the device at once."""
    limit: int
    """Bytes that may be used."""
    reason: str
    """One clause, for messages."""


def plan_memory(
    sizes: Iterable[EngineSize], *, free: int, budget: int | None = None, holding: Holding | None = None
) -> MemoryPlan:
    """Choose the fastest holding that fits.

    Args:
        sizes: sizes of all engines that may run.
        free: device memory that is free now.
        budget: the user's limit in bytes; None: all free memory, less a reserve.
        holding: the user's choice; None: the fastest that fits.

    Raises:
        InputError: the budget is not positive.
        EngineError: nothing fits; says what each holding needs.
    """
    if budget is not None and budget < 1:
        raise InputError(f"got a memory budget of {budget} bytes, {_EXPECTED}")
    engines = tuple(sizes)
    available = max(free - RESERVE_BYTES, 0)
    limit = available if budget is None else min(budget, available)
    peaks = {each: peak_bytes(engines, each) for each in HOLDINGS}
    for each in HOLDINGS if holding is None else (holding,):
        if peaks[each] <= limit:
            reason = f"{each} takes {_readable(peaks[each])} of {_readable(limit)}"
            return MemoryPlan(holding=each, peak=peaks[each], limit=limit, reason=reason)
    raise EngineError(f"{_refusal(engines, peaks, limit, budget)}; {_cure(peaks, limit, available)}")


def peak_bytes(engines: Iterable[EngineSize], holding: Holding) -> int:
    """Return the most bytes on the device at once."""
    every = tuple(engines)
    tensors = sum(each.tensors for each in every)
    weights = sum(each.weights for each in every)
    if holding == "resident":
        return tensors + weights + sum(each.activations for each in every)
    if holding == "shared":
        return tensors + weights + max((each.activations for each in every), default=0)
    return tensors + max((each.weights + each.activations for each in every), default=0)


def read_memory(text: str | None) -> tuple[int | None, Holding | None]:
    """Read a budget in bytes or the name of a holding.

    Args:
        text: such as "8GB", "900 MiB" or "staged"; None: neither.

    Returns:
        Budget and holding, for `plan_memory`.

    Raises:
        InputError: it is neither.
    """
    if text is None:
        return None, None
    for holding in HOLDINGS:
        if text.strip().lower() == holding:
            return None, holding
    try:
        return parse_size(text), None
    except InputError as error:
        raise InputError(f"got memory {text!r}, {_EXPECTED}, or one of: {', '.join(HOLDINGS)}") from error


def parse_size(text: str) -> int:
    """Read a size in bytes, such as "4GB", "512 MiB" or "1000000".

    Raises:
        InputError: not a size, or not a positive one.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    size = int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    if size < 1:
        raise InputError(f"got {text!r}, {_EXPECTED}")
    return size


def _refusal(
    engines: tuple[EngineSize, ...], peaks: dict[Holding, int], limit: int, budget: int | None
) -> str:
    largest = max(engines, key=lambda each: each.weights + each.activations).name
    takes = ", ".join(f"{each} {_readable(peak)}" for each, peak in peaks.items())
    got = f"{_readable(limit)} may be used" if budget is not None else f"{_readable(limit)} are free"
    return f"the engines do not fit: {got}, they take: {takes} (largest: {largest})"


def _cure(peaks: dict[Holding, int], limit: int, available: int) -> str:
    fitting = [each for each in HOLDINGS if peaks[each] <= limit]
    if fitting:  # but not the requested one
        return f"use --memory {fitting[0]}, or leave it out"
    least = min(peaks.values())
    if least <= available:
        return f"give --memory {_readable(least)} or more"
    return (
        "end other programs on the device, take a more compact precision (fp16, int8), "
        "or export for smaller images"
    )


def _readable(size: int) -> str:
    """Return a size as text, rounded up, so that the printed budget is enough."""
    unit, name = next(((u, n) for u, n in ((10**9, "GB"), (10**6, "MB")) if size >= u), (10**3, "KB"))
    return f"{-(-size * 10 // unit) / 10:g}{name}"
