"""Records of several measurements in one JSON file, one entry per configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from provenance import provenance

RESULTS = Path(__file__).parent / "results"


def add_entry(
    path: Path, name: str, entry: dict[str, Any], *, gpu: str | None = None, commit: str | None = None
) -> None:
    """Write or replace one entry, with where and when it was measured; the others stay."""
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    document[name] = {**entry, "provenance": provenance(gpu=gpu, commit=commit)}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(sorted(document.items())), indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"{path.name}: {name}")  # noqa: T201 - what a benchmark is for
