"""One line of a diagnosis: what was looked at, how it is, what was found, and what mends it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]
"""ok: nothing to do. warn: something will not work, or not as well as it could. fail: nothing runs."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The line."""

    section: str
    name: str
    state: State
    found: str
    cure: str = ""

    def to_json(self) -> dict[str, str]:
        """A JSON-ready dictionary."""
        return dataclasses.asdict(self)


def readable(size: int | None) -> str:
    """A size as people write it."""
    if size is None:
        return "an unknown amount"
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e6:.0f} MB"
