"""What an exception or an exit of a reader means, and whose error it becomes."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from refdiff.camera.sources.fault import FaultError, SourceFault, explain, explain_exit
from refdiff.errors import InputError, MissingDependencyError, SourceError, SourceLostError


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, "not_found"),
        (errno.ECONNREFUSED, "refused"),
        (errno.ETIMEDOUT, "timeout"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.ENODEV, "unplugged"),
        (errno.EBUSY, "busy"),
        (errno.EACCES, "permission"),
        (errno.EAGAIN, "resources"),
        (errno.ENOMEM, "resources"),
        (errno.EDOM, "unknown"),
    ],
)
def test_each_refusal_of_the_system_has_a_kind(number: int, kind: str) -> None:
    assert explain(OSError(number, os.strerror(number)), "/dev/video0").kind == kind


def test_errors_of_this_package_keep_their_words() -> None:
    assert explain(FaultError("codec", "no video"), "x") == SourceFault(kind="codec", reason="no video")
    assert explain(InputError("bad seed"), "x") == SourceFault(kind="input", reason="bad seed")
    assert explain(MissingDependencyError("no cv2"), "x").kind == "missing"
    assert explain(MemoryError(), "x").kind == "resources"


def test_what_pyav_raises_is_recognized_by_its_class() -> None:
    av = pytest.importorskip("av")
    denied = av.error.HTTPUnauthorizedError(1, "Server returned 401", "rtsp://me:pw@h")
    assert explain(denied, "rtsp://me:pw@h").kind == "authentication"
    assert explain(av.error.InvalidDataError(1, "Invalid data"), "x").kind == "codec"
    assert explain(av.error.BlockingIOError(11, "Resource temporarily unavailable"), "x").kind == "resources"


def test_a_process_that_ended_without_a_word_is_named_by_its_signal_and_last_lines() -> None:
    assert explain_exit(-signal.SIGSEGV, "assertion failed").reason == (
        "the reader process ended with signal SIGSEGV: assertion failed"
    )
    assert explain_exit(-signal.SIGBUS, "").kind == "resources"
    assert explain_exit(1, "RuntimeError: can't start new thread").kind == "resources"
    assert explain_exit(1, "").kind == "crashed"
    assert "signal 99" in explain_exit(-99, "").reason


@pytest.mark.parametrize(
    ("kind", "opened", "expected"),
    [
        ("timeout", False, SourceError),
        ("timeout", True, SourceLostError),
        ("input", False, InputError),
        ("missing", False, MissingDependencyError),
        ("never heard of", False, SourceError),
    ],
)
def test_a_fault_becomes_the_error_of_who_can_cure_it(
    kind: str, opened: bool, expected: type[Exception]
) -> None:
    error = SourceFault(kind=kind, reason="why").error("cam", opened=opened, tries=3)
    assert type(error) is expected
    assert "cam" in str(error)
    assert "why" in str(error)
