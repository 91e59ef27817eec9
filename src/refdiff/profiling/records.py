"""A profile as a record: what a comparison reads of the JSON document that `refdiff profile --json` prints.

In: a parsed document. Out: a `Profile`, or an error that says what is wrong with the file.

Profiles as files: the page and the trace of one, and two records side by side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refdiff.contracts.atomic_io import check_targets, write_files
from refdiff.errors import InputError
from refdiff.profiling.comparison import Comparison, compare, read_profile
from refdiff.profiling.report import ProfileReport
from refdiff.profiling.spans import trace_of
from refdiff.profiling.tables import profile_page


def profile_outputs(
    *, html: Path | str | None, trace: Path | str | None, overwrite: bool = False
) -> Mapping[str, Path]:
    """What `save_profile` will write: kind -> path; refused now rather than after the measuring.

    Raises:
        InputError: a folder is missing, a file is in the way, or both are the same.
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
        html: one page that needs nothing beside it.
        trace: every measured span, in Chrome's trace event format.
        overwrite: replace what is there.

    Returns:
        What was written: kind -> path.

    Raises:
        InputError: a place is taken, read-only or full.
    """
    paths = profile_outputs(html=html, trace=trace, overwrite=overwrite)
    groups = [("cold start", report.cold), *report.questions]
    contents = {
        "html": lambda: profile_page(report).to_html().encode(errors="replace"),
        "trace": lambda: (json.dumps(trace_of(groups), allow_nan=False) + "\n").encode(),
    }
    write_files({path: contents[kind]() for kind, path in paths.items()}, overwrite=overwrite)
    return paths


def compare_profiles(before: Path | str, after: Path | str, *, allow_different: bool = False) -> Comparison:
    """Whether one record is slower than another beyond the noise of both; see `refdiff.profiling.comparison`.

    Args:
        before: a file that `refdiff profile --json` printed.
        after: another.
        allow_different: compare records of different machines, bundles or options.

    Raises:
        InputError: a file is no such record, or the two are not of the same thing.
    """
    first, second = (read_profile(_document(Path(path)), str(path)) for path in (before, after))
    return compare(first, second, allow_different=allow_different)


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a profile") from error
    except (RecursionError, ValueError) as error:
        raise InputError(
            f"{path} is not JSON ({error}); expected what `refdiff profile BUNDLE --json` prints"
        ) from error
