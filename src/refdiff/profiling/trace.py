"""Spans in Chrome's trace event format, which chrome://tracing and Perfetto open.

In: spans of a cold start and of questions. Out: a JSON-ready document; times in µs since the first span.
Format: "Trace Event Format", complete events (ph "X").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refdiff.profiling.spans import Span


def trace_of(groups: Sequence[tuple[str, Sequence[Span]]]) -> dict[str, Any]:
    """A trace of one process and one thread.

    Args:
        groups: a title, such as "cold start", and its spans; each group becomes one event around its spans.
    """
    events: list[dict[str, Any]] = [
        _named("process_name", "refdiff profile"),
        _named("thread_name", "pipeline"),
    ]
    begin = min((span.start_ns for _, spans in groups for span in spans), default=0)
    for title, spans in groups:
        if not spans:
            continue
        start, end = min(span.start_ns for span in spans), max(span.end_ns for span in spans)
        events.append(_event(title, "question", start - begin, end - start, {}))
        events += [
            _event(span.name, span.kind, span.start_ns - begin, span.end_ns - span.start_ns, _details(span))
            for span in spans
        ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(
    name: str, category: str, start_ns: int, length_ns: int, details: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "pid": 1,
        "tid": 1,
        "ts": start_ns / 1e3,
        "dur": length_ns / 1e3,
        "args": details,
    }


def _named(kind: str, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": 1, "tid": 1, "args": {"name": name}}


def _details(span: Span) -> dict[str, Any]:
    call = span.call
    if call is None:
        return {}
    return {
        "feeds": {name: "×".join(map(str, shape)) for name, shape in call.shapes.items()},
        "fed_bytes": call.fed_bytes,
        "returned_bytes": call.returned_bytes,
        "device_ms": call.device_ms,
    }
