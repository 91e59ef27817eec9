import errno
import logging
from contextlib import ExitStack
from pathlib import Path

import pytest

from refdiff.contracts.file_lock import lock_file
from refdiff.errors import InputError


def busy():
    raise InputError("busy")


def refusing(number: int):
    def take(handle: int) -> bool:
        raise OSError(number, "No locks available")

    return take


def test_a_lock_keeps_a_second_holder_out_until_it_gives_up_or_waits(tmp_path: Path):
    path = tmp_path / ".lock"
    with lock_file(path, on_busy=lambda: pytest.fail("it is free")), pytest.raises(InputError, match="busy"):
        lock_file(path, on_busy=busy).__enter__()
    first = ExitStack()
    first.enter_context(lock_file(path, on_busy=busy))
    with lock_file(path, on_busy=first.close):  # the first holder ends, and the wait with it
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_without_locks_is_used_with_a_warning(
    tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / ".lock"
    with (
        caplog.at_level(logging.WARNING),
        lock_file(path, on_busy=busy, take=refusing(number)),
        lock_file(path, on_busy=busy, take=refusing(number)),
    ):
        pass
    assert caplog.messages == [f"{path}: no locks here (No locks available); do not start a second run"] * 2


def test_what_must_not_go_on_without_a_lock_does_not(tmp_path: Path):
    """Deleting the drafts of killed writers, for one."""
    lock = lock_file(tmp_path / ".lock", on_busy=busy, required=True, take=refusing(errno.ENOLCK))
    with pytest.raises(OSError, match="No locks available"), lock:
        pytest.fail("not reached")


def test_any_other_refusal_is_an_error(tmp_path: Path):
    with (
        pytest.raises(OSError, match="No locks"),
        lock_file(tmp_path / ".lock", on_busy=busy, take=refusing(errno.EIO)),
    ):
        pytest.fail("not reached")
