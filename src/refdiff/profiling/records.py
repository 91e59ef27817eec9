"""Files of a profile: its page, its trace, and what a comparison reads of its JSON record.

The trace is in Chrome's "Trace Event Format", complete events (ph "X"), which Perfetto opens.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.contracts.atomic_io import check_targets, write_files
from refdiff.contracts.json_fields import read_json
from refdiff.errors import InputError
from refdiff.profiling.report import FORMAT, KIND, ProfileReport
from refdiff.profiling.spans import Part, Span
from refdiff.profiling.tables import profile_page

LEAST_ROUNDS = 5
"""Fewer rounds say nothing about their noise."""

ALL = "all"
"""The row of a sample's whole time."""


def check_outputs(
    *, html: Path | str | None, trace: Path | str | None, overwrite: bool = False
) -> Mapping[str, Path]:
    """Refuse files that `save_profile` could not write, before anything is measured.

    Returns:
        Kind -> path.

    Raises:
        InputError: a folder is missing, a file exists, or both are the same.
    """
    paths = {kind: Path(path) for kind, path in (("html", html), ("trace", trace)) if path is not None}
    if len(set(paths.values())) < len(paths):
        raise InputError(f"page and trace are both {html}; give them different names")
    check_targets(paths.values(), overwrite=overwrite)
    return paths


def save_profile(
    report: ProfileReport,
    *,
    html: Path | str | None = None,
    trace: Path | str | None = None,
    overwrite: bool = False,
) -> Mapping[str, Path]:
    """Write the page and the trace, both or none.

    Args:
        report: from `profile`.
        html: a page in one file.
        trace: every measured span, as a Chrome trace.
        overwrite: replace existing files.

    Returns:
        What was written: kind -> path.

    Raises:
        InputError: a file exists, or a place is read-only or full.
    """
    paths = check_outputs(html=html, trace=trace, overwrite=overwrite)
    groups = [("cold start", report.cold), *report.spans]
    contents = {
        "html": lambda: profile_page(report).to_html().encode(errors="replace"),
        "trace": lambda: (json.dumps(trace_of(groups), allow_nan=False) + "\n").encode(),
    }
    write_files({path: contents[kind]() for kind, path in paths.items()}, overwrite=overwrite)
    return paths


def trace_of(groups: Sequence[tuple[str, Sequence[Span]]]) -> dict[str, Any]:
    """Convert spans to a trace of one process and one thread, in µs since the first span.

    Args:
        groups: a title, such as "cold start", and its spans; each group becomes an event around its spans.
    """
    events: list[dict[str, Any]] = [
        {"name": kind, "ph": "M", "pid": 1, "tid": 1, "args": {"name": name}}
        for kind, name in (("process_name", "refdiff profile"), ("thread_name", "pipeline"))
    ]
    zero = min((span.start_ns for _, spans in groups for span in spans), default=0)
    for title, spans in groups:
        if not spans:
            continue
        start, end = min(span.start_ns for span in spans), max(span.end_ns for span in spans)
        whole = Span(name=title, kind="step", parent=None, start_ns=start, end_ns=end)
        events.append({**_event(whole, zero), "cat": "question"})
        events += [_event(span, zero) for span in spans]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(span: Span, zero_ns: int) -> dict[str, Any]:
    call = span.call
    details = (
        {}
        if call is None
        else {
            "feeds": {name: "×".join(map(str, shape)) for name, shape in call.shapes.items()},
            "fed_bytes": call.fed_bytes,
            "returned_bytes": call.returned_bytes,
            "device_ms": call.device_ms,
        }
    )
    return {
        "name": span.name,
        "cat": span.kind,
        "ph": "X",
        "pid": 1,
        "tid": 1,
        "ts": (span.start_ns - zero_ns) / 1e3,
        "dur": (span.end_ns - span.start_ns) / 1e3,
        "args": details,
    }


@dataclass(frozen=True, kw_only=True)
class ProfileRecord:
    """The part of a record that a comparison reads."""

    name: str
    identity: Mapping[str, Any]
    """Fields that two records must have in common to be comparable."""
    rows: Mapping[str, Sequence[float]]
    """`ALL`, stage or stage/part -> milliseconds of each round, in their order."""
    peak: float | None
    """GFLOP/s of the matrix product, the median over the rounds; None: unknown."""
    left_out: int
    """Rounds in which the machine throttled."""


def load_record(path: Path) -> ProfileRecord:
    """Read a file that `refdiff profile --json` printed.

    Raises:
        InputError: the file is not such a record.
    """
    advice = "expected what `refdiff profile BUNDLE --json` prints"
    return read_record(read_json(path, InputError, advice), str(path))


def read_record(document: Any, name: str) -> ProfileRecord:
    """Read what is compared of a record.

    Args:
        document: parsed JSON.
        name: of its file, for messages.

    Raises:
        InputError: it is not a profile, of another format, or of too few rounds.
    """
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise InputError(f"{name} is no profile; expected what `refdiff profile BUNDLE --json` prints")
    if document.get("format") != FORMAT:
        raise InputError(
            f"{name} is a profile of format {document.get('format')!r}, expected {FORMAT}; profile again"
        )
    try:
        options = dict(document["options"])
        if "profile" in options:  # records made before the option was renamed
            options["variant"] = options.pop("profile")
        rounds: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for sample in document["samples"]:
            rounds[int(sample["round"])].append(sample)
        kept = [rounds[at] for at in sorted(rounds) if not any(each["throttled"] for each in rounds[at])]
        rows = _rows([[dict(each["parts"]) for each in one] for one in kept])
        speeds = [float(speed) for speed in document["peak"]["rounds"]]
        identity = {"machine": document["machine"], "bundle": document["bundle"], "options": options}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{name} is a damaged profile ({type(error).__name__}: {error}); profile again"
        ) from error
    left_out = len(rounds) - len(kept)
    if len(kept) < LEAST_ROUNDS:
        throttled = f", {left_out} of {len(rounds)} were throttled" if left_out else ""
        raise InputError(
            f"{name} has {len(kept)} rounds to compare{throttled}, expected {LEAST_ROUNDS} or more; "
            "profile again with more --runs"
        )
    peak = float(np.median(speeds)) if speeds else None
    return ProfileRecord(name=name, identity=identity, rows=rows, peak=peak, left_out=left_out)


def _rows(rounds: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, list[float]]:
    """Return per row its mean over the samples of each round; a stage of one part has no row of its own."""
    parts = {text for one in rounds for each in one for text in each}
    stages: dict[str, set[str]] = defaultdict(set)
    for text in parts:
        stages[Part.parse(text).stage].add(text)
    several = {stage: texts for stage, texts in stages.items() if len(texts) > 1}
    summed = {ALL: parts, **several, **{text: {text} for text in parts}}
    return {
        row: [sum(float(each.get(text, 0.0)) for each in one for text in texts) / len(one) for one in rounds]
        for row, texts in summed.items()
    }
