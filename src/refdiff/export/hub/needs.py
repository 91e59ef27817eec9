"""Which files a model needs in a folder, as far as the folder itself tells.

In: a folder that may be incomplete (a stopped fetch, a part of the hub library's cache). Out: names, also of
files that are not there. The shards of an index that is there are read out of it. Nothing here touches the
network or needs more than Python.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from refdiff.errors import InputError
from refdiff.export.hub.names import HubName, expected_files, is_hidden, is_index
from refdiff.export.hub.record import RECORD
from refdiff.export.presets import known_source


def needed_files(folder: Path, wanted: HubName, recorded: Collection[str]) -> tuple[str, ...]:
    """The files that the loaders need of a model.

    Args:
        folder: the repository's, which may be missing.
        wanted: the model.
        recorded: names of the files that were fetched into the folder, and may have been lost since.

    Returns:
        Names relative to the folder; none where the folder does not tell.
    """
    known = known_source(wanted.repo)
    if wanted.file is not None:
        names: tuple[str, ...] = (wanted.file,)
    elif known is not None:
        names = known.files
    else:
        try:
            names = expected_files(_names_in(folder) | set(recorded), wanted.repo)
        except InputError:
            return ()
    shards = (shard for name in names if is_index(name) for shard in shards_of(folder, name) or ())
    return tuple(dict.fromkeys((*names, *shards)))


def shards_of(folder: Path, index: str) -> tuple[str, ...] | None:
    """The shards that an index names, relative to the folder; None if it cannot be read or names none."""
    path = folder / index
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not names or not all(isinstance(name, str) and _is_plain(name) for name in names):
        return None
    return tuple(sorted((path.parent / name).relative_to(folder).as_posix() for name in names))


def _is_plain(name: str) -> bool:
    """Whether it names a file beside the index, as the loaders demand: another could be anywhere."""
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _names_in(folder: Path) -> set[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in names if name != RECORD and not is_hidden(name)}
