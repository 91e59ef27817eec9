"""Seeded mutations of files, and the loop that hands them to a reader.

Input number n depends on the samples, the seed and n only, so a failure is reproduced by its number. The time
budget decides how many inputs are tried: REFDIFF_FUZZ_SECONDS per target, half a second without it.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from refdiff.errors import RefdiffError

SECONDS = "REFDIFF_FUZZ_SECONDS"
"""Environment variable: seconds per fuzz target."""

_DEFAULT_SECONDS = 0.5
_LEAST = 20
"""Inputs that are tried on any machine, however slow."""

_MOST_CHANGES = 6
"""Changes of one input."""

_BYTES = (0x00, 0x01, 0x2E, 0x7F, 0x80, 0xFF, 0x22, 0x28, 0x5B, 0x7B)
_NUMBERS = (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
_TEXTS = (
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"true",
    b'""',
    b"[]",
    b"{}",
    b"9" * 400,
    b"../../x",
    b"\x1b[31m",
    b"\xff\xfe",
    b"[" * 3000,
    b'{"a":' * 3000,
)


@dataclass(frozen=True)
class FuzzCount:
    """How many inputs a reader read, and how many it refused with an allowed error."""

    read: int
    refused: int


def fuzz(
    read: Callable[[bytes], object],
    samples: Sequence[bytes],
    *,
    seed: int,
    allowed: type[Exception] | tuple[type[Exception], ...] = RefdiffError,
    seconds: float | None = None,
) -> FuzzCount:
    """Hand mutated samples to a reader until the time is up.

    Args:
        read: takes a file's content; may write it to a file first.
        samples: sound contents.
        seed: of the mutations.
        allowed: errors with which the reader may refuse an input.
        seconds: time budget; None for `budget_s()`.

    Raises:
        AssertionError: the reader raised another error; the message has the input's number and start.
    """
    end = time.monotonic() + (budget_s() if seconds is None else seconds)
    counts = {"read": 0, "refused": 0}
    for number, content in enumerate(mutations(samples, seed=seed)):
        if number >= _LEAST and time.monotonic() > end:
            break
        try:
            read(content)
            counts["read"] += 1
        except allowed:
            counts["refused"] += 1
        except BaseException as error:
            what = f"input {number} of seed {seed} ({len(content)} bytes, {content[:60]!r}...)"
            raise AssertionError(f"{what}: got {type(error).__name__}: {error}") from error
    return FuzzCount(**counts)


def fuzz_file(
    read: Callable[[Path], object],
    samples: Sequence[bytes],
    file: Path,
    *,
    seed: int,
    allowed: type[Exception] | tuple[type[Exception], ...] = RefdiffError,
    memory_mb: float = 300.0,
) -> FuzzCount:
    """Write mutated samples to a file, and hand it to a reader until the time is up.

    Args:
        read: takes the file's path.
        samples: sound contents.
        file: in a folder where nothing may appear or disappear meanwhile.
        seed: of the mutations.
        allowed: errors with which the reader may refuse an input.
        memory_mb: by which the process's peak may grow.

    Raises:
        AssertionError: the reader raised another error, changed the folder, or took more memory.
    """

    def try_one(content: bytes) -> None:
        file.write_bytes(content)
        try:
            read(file)
        finally:
            now = set(folder.rglob("*"))
            if now != present:
                raise AssertionError(f"the reader changed the folder: {now ^ present}")
            if _peak_mb() - before > memory_mb:
                raise AssertionError(f"the reader took {_peak_mb() - before:.0f} MB")

    folder = file.parent
    file.write_bytes(samples[0])
    read(file)  # loads what the reader imports, so that it is not counted
    present, before = set(folder.rglob("*")), _peak_mb()
    return fuzz(try_one, samples, seed=seed, allowed=allowed)


def _peak_mb() -> float:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def budget_s() -> float:
    """Return the seconds that one target may take."""
    return float(os.environ.get(SECONDS) or _DEFAULT_SECONDS)


def mutations(samples: Sequence[bytes], *, seed: int) -> Iterator[bytes]:
    """Yield mutated contents without end."""
    for number in itertools.count():
        rng = random.Random(f"{seed}:{number}")  # noqa: S311 - no secret
        content = rng.choice(samples)
        for _ in range(rng.randint(1, _MOST_CHANGES)):
            content = rng.choice(_CHANGES)(content, rng, samples)
        yield content


def _flip(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    return _overwrite(content, rng, bytes([1 << rng.randrange(8)]), xor=True)


def _set_byte(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    return _overwrite(content, rng, bytes([rng.choice(_BYTES)]))


def _set_number(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    size = rng.choice((2, 4, 8))
    value = rng.choice(_NUMBERS) % (1 << 8 * size)
    return _overwrite(content, rng, value.to_bytes(size, rng.choice(("little", "big"))))


def _truncate(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    return content[: rng.randint(0, len(content))]


def _delete(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def _repeat(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start, end = _span(content, rng)
    return content[:end] + content[start:end] * rng.randint(1, 3) + content[end:]


def _move(content: bytes, rng: random.Random, samples: Sequence[bytes]) -> bytes:
    start, end = _span(source := rng.choice(samples), rng)
    place = rng.randint(0, len(content))
    return content[:place] + source[start:end] + content[place:]


def _insert_text(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    place = rng.randint(0, len(content))
    return content[:place] + rng.choice(_TEXTS) + content[place:]


def _replace_value(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """Replace a number or a quoted string, as text formats have them."""
    values = [match.span() for match in re.finditer(rb'-?\d+(\.\d+)?|"[^"]{0,80}"', content[:100_000])]
    if not values:
        return content
    start, end = rng.choice(values)
    return content[:start] + rng.choice(_TEXTS) + content[end:]


def _overwrite(content: bytes, rng: random.Random, new: bytes, *, xor: bool = False) -> bytes:
    place = rng.randint(0, max(0, len(content) - len(new)))
    old = content[place : place + len(new)]
    changed = bytes(a ^ b for a, b in zip(old, new, strict=False)) if xor else new
    return content[:place] + changed + content[place + len(new) :]


def _span(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randint(0, len(content))
    return start, min(len(content), start + rng.choice((1, 2, 4, 16, 64, 256)))


_CHANGES = (
    *(_flip, _set_byte, _set_number) * 2,
    *(_truncate, _delete, _repeat, _move, _insert_text, _replace_value),
)
