"""The plans that this user built here, or accepted: one empty file per hash in the user's state folder.

A plan is code, so one that came with a bundle is not loaded until its hash is recorded. `refdiff build`
records what it builds; with `--trust-plans` it also records what it finds. Compiled kernels are recorded too.

    $XDG_STATE_HOME/refdiff/built-plans/<sha256>    ~/.local/state where XDG_STATE_HOME is not set
"""

from __future__ import annotations

import re
from pathlib import Path

from refdiff.contracts.atomic_io import report_write_errors
from refdiff.contracts.user_folders import state_folder
from refdiff.errors import InputError

_SHA256 = re.compile(r"[0-9a-f]{64}")


def record_trust(sha256: str) -> None:
    """Record the hash of a plan, or of a file of compiled kernels.

    Raises:
        InputError: this user has no home folder, or the state folder cannot be written to.
    """
    folder = _folder()
    with report_write_errors(
        f"the record of plans in {folder}", "set XDG_STATE_HOME to a folder of this user"
    ):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / sha256).touch()


def is_trusted(sha256: str) -> bool:
    """Return whether this user built or accepted what has this hash; False if the record cannot be read."""
    try:
        return _SHA256.fullmatch(sha256) is not None and (_folder() / sha256).is_file()
    except (InputError, OSError):
        return False


def _folder() -> Path:
    return state_folder() / "built-plans"
