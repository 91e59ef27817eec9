"""The folders of this user that refdiff writes to unless another is named: cache and state.

Both follow the XDG base directories, on every system.
"""

from __future__ import annotations

import os
from pathlib import Path

from refdiff.errors import InputError


def cache_folder() -> Path:
    """Return the folder of what can be made again: downloads, and plans of the built-in bundle.

    Raises:
        InputError: this user has no home folder, and none is stated.
    """
    return _folder("XDG_CACHE_HOME", ".cache")


def state_folder() -> Path:
    """Return the folder of what cannot be made again: the record of plans that this user built.

    Raises:
        InputError: this user has no home folder, and none is stated.
    """
    return _folder("XDG_STATE_HOME", ".local/state")


def _folder(variable: str, below_home: str) -> Path:
    stated = os.environ.get(variable)
    try:
        return (Path(stated) if stated else Path.home() / below_home) / "refdiff"
    except RuntimeError as error:
        raise InputError(f"this user has no home folder; set {variable} to a folder") from error
