"""Read the time of each node from ONNX Runtime's own profile.

In: options of a session, and the session. Out: one `LayerTime` for each node.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refdiff.contracts.session import LayerTime
from refdiff.errors import EngineError

_KERNEL = "_kernel_time"
"""Suffix of the events that are a node's own work."""


class LayerFile:
    """ONNX Runtime's profile of one session, in a temporary folder.

    Args:
        options: options of the session, in which profiling is enabled.
        name: name of the graph.
    """

    def __init__(self, options: Any, name: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="refdiff-layers-", ignore_cleanup_errors=True)
        self._times: Sequence[LayerTime] | None = None
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / name)

    def read(self, session: Any) -> Sequence[LayerTime]:
        """Read what the session wrote; the first call ends its profiling.

        Raises:
            EngineError: the session is closed, or its file cannot be read.
        """
        if self._times is None:
            if session is None:
                raise EngineError("the session is closed; read its layers before")
            path = Path(session.end_profiling())
            try:
                events = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise EngineError(f"ONNX Runtime's profile {path} cannot be read: {error}") from error
            self._times = layer_times(events)
        return self._times

    def close(self) -> None:
        """Delete the file; calling it twice is fine."""
        self._folder.cleanup()


def layer_times(events: Sequence[Mapping[str, Any]]) -> Sequence[LayerTime]:
    """Sum the nodes' events, in the order they first ran.

    Args:
        events: Chrome trace events; times in µs.
    """
    found: dict[str, tuple[str, int, float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL):
            continue
        operator, calls, ms = found.get(name, (str(event["args"].get("op_name", "")), 0, 0.0))
        found[name] = (operator, calls + 1, ms + float(event["dur"]) / 1e3)
    return tuple(
        LayerTime(name=name.removesuffix(_KERNEL), operator=operator, calls=calls, ms=ms)
        for name, (operator, calls, ms) in found.items()
    )
