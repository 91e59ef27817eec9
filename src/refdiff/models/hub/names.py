"""Names on the hub: `owner/name/file@revision`, and which files of a repository are needed.

In: a name as typed, and the names of the files that a repository or folder has. Out: `HubName`, and the files
that this package's loaders read, safetensors rather than pickles. Nothing here uses the network or a disk.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from refdiff.errors import InputError

_PATTERN = re.compile(
    r"(?P<repo>[a-z0-9][\w.-]*/[a-z0-9][\w.-]*)(/(?P<file>[^@]+))?(@(?P<revision>[^@]+))?",
    re.ASCII | re.IGNORECASE,
)

DIFFUSERS_INDEX = "model_index.json"
_SCHEDULER = "scheduler/scheduler_config.json"
_TOKENIZER = ("tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json")
"""Either names the padding token; every release of transformers writes the first."""

_DIFFUSERS_PARTS = {
    "text_encoder": ("model", "pytorch_model"),
    "vae": ("diffusion_pytorch_model",) * 2,
    "unet": ("diffusion_pytorch_model",) * 2,
}
"""Part -> names of its safetensors and of its pickles, without suffix."""

_VARIANTS = ("", ".fp16")
NON_EMA = ".non_ema"
"""Suffix of the UNet's weights that are not averaged over the training."""

_SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")

TRANSFORMERS_WEIGHTS = (*_SAFE_WEIGHTS, *_PICKLED_WEIGHTS)
"""Weights that transformers' `save_pretrained` writes, preferred first."""

FOLDER_WEIGHTS = (
    "open_clip_model.safetensors",
    *_SAFE_WEIGHTS,
    "open_clip_pytorch_model.bin",
    *_PICKLED_WEIGHTS,
)
"""The same, and open_clip's: weights of a CLIP or SAM next to their configuration."""

_AUTOENCODER_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""Weights of an autoencoder alone, next to its configuration."""

_FOLDER_SETTINGS = (
    "config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_SAFE, _PICKLES = (".safetensors",), (".ckpt", ".pth", ".pt", ".bin")
_INDEX = re.compile(r"(?P<stem>.+)\.(?P<kind>safetensors|bin)\.index(?P<variant>(\.\w+)?)\.json")
_SHARD = re.compile(r".+-\d+-of-\d+\.\w+")


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A model repository, at a revision, or one file of it."""

    repo: str
    revision: str | None = None
    file: str | None = None
    non_ema: bool = False
    """Take the UNet's weights that are not averaged, of a diffusers folder with both."""

    @property
    def text(self) -> str:
        """The name as a user writes it."""
        file = f"/{self.file}" if self.file else ""
        return f"{self.repo}{file}" + (f"@{self.revision}" if self.revision else "")


def parse_hub_name(text: str) -> HubName:
    """Read `owner/name`, optionally followed by `/file` and `@revision`.

    Raises:
        InputError: it has another form.
    """
    match = _PATTERN.fullmatch(text)
    if match is None or ".." in match["repo"]:
        raise InputError(
            f"{text!r} is neither a file nor a folder that exists nor a name on the hub; expected a path, "
            "owner/name, owner/name@revision or owner/name/file"
        )
    for part in (match["file"], match["revision"]):
        if part is not None:
            check_inside(part, match["repo"])
    return HubName(repo=match["repo"], revision=match["revision"], file=match["file"])


def check_inside(name: str, repo: str) -> None:
    """Refuse the name of a file that could be written outside the repository's folder.

    Raises:
        InputError: an absolute name, or one with "..", an empty part, a backslash or a control character.
    """
    parts = name.split("/")
    if "" in parts or ".." in parts or "\\" in name or not name.isprintable():
        raise InputError(f"{repo}: {name!r} leads outside of it, expected a plain name inside; do not use it")


def is_hidden(name: str) -> bool:
    """Return whether a file is bookkeeping of the hub or of this package."""
    return any(part.startswith(".") for part in name.split("/"))


def is_index(name: str) -> bool:
    """Return whether a file lists the shards of its model's weights."""
    return _INDEX.fullmatch(name) is not None


def with_shards(weights: str, names: Collection[str]) -> tuple[str, ...]:
    """Return a weight file, followed, if it is an index, by those of `names` that are its shards."""
    index = _INDEX.fullmatch(weights)
    if index is None:
        return (weights,)
    start = re.escape(index["stem"] + index["variant"])
    shard = re.compile(rf"{start}-\d+-of-\d+\.{index['kind']}")
    return weights, *sorted(name for name in names if shard.fullmatch(name))


def choose_files(names: Collection[str], repo: str, *, non_ema: bool = False) -> tuple[str, ...]:
    """Return the files of a repository that the loaders need.

    Args:
        names: relative to the repository, with forward slashes.
        repo: for messages.
        non_ema: see `HubName`.

    Raises:
        InputError: it holds no model of a known layout, an incomplete one, or several single files.
    """
    files = expected_files(names, repo, non_ema=non_ema)
    lacks = next((name for name in files if name not in names), None)
    if lacks is not None:
        raise InputError(f"{repo} lacks {_alternatives(lacks)}; expected a whole Stable Diffusion 1.x or 2.x")
    return files


def expected_files(names: Collection[str], repo: str, *, non_ema: bool = False) -> tuple[str, ...]:
    """Return the files that the loaders need, also those that a repository or folder lacks.

    Where one of several files is enough and none is there, the preferred one is returned. Missing files are
    known only for a diffusers folder.

    Raises:
        InputError: there is no model of a known layout, or there are several single files.
    """
    if DIFFUSERS_INDEX in names:
        return tuple(_diffusers_files(names, non_ema=non_ema))
    known = (*FOLDER_WEIGHTS, *(_AUTOENCODER_WEIGHTS if "config.json" in names else ()))
    weights = next((name for name in known if name in names), None)
    if weights is not None:
        return (*(name for name in _FOLDER_SETTINGS if name in names), *with_shards(weights, names))
    top = sorted(name for name in names if "/" not in name and not _SHARD.fullmatch(name))
    single = [name for name in top if name.endswith(_SAFE)] or [n for n in top if n.endswith(_PICKLES)]
    if len(single) == 1:
        return (single[0],)
    if single:
        raise InputError(
            f"{repo} holds several checkpoints: {', '.join(single)}; name one, as in {repo}/{single[0]}"
        )
    raise InputError(
        f"{repo} holds no checkpoint, expected a diffusers folder, a CLIP or SAM with its weights, or a "
        f"single {', '.join((*_SAFE, *_PICKLES))}"
    )


def entry_of(folder: Path, files: Collection[str], file: str | None = None) -> Path:
    """Return what a loader reads: the requested file, a lone checkpoint, or else the folder."""
    if file is not None:
        return folder / file
    lone = next(iter(files)) if len(files) == 1 else None
    return folder if lone is None or lone in FOLDER_WEIGHTS else folder / lone


def _diffusers_files(names: Collection[str], *, non_ema: bool) -> Iterator[str]:
    yield DIFFUSERS_INDEX
    yield _SCHEDULER
    yield from [name for name in _TOKENIZER if name in names] or _TOKENIZER[:1]
    for part in _DIFFUSERS_PARTS:
        own = part_weights(part, non_ema=non_ema and part == "unet")
        candidates = [f"{part}/{name}" for name in own]
        yield f"{part}/config.json"
        yield from with_shards(next((name for name in candidates if name in names), candidates[0]), names)


def part_weights(part: str, *, non_ema: bool = False) -> list[str]:
    """Return the names that the weights of a diffusers folder's part may have, preferred first.

    Full precision comes before half, safetensors before pickles, one file before shards.
    """
    safe, pickled = _DIFFUSERS_PARTS[part]
    return [
        name
        for variant in ((NON_EMA,) if non_ema else _VARIANTS)
        for stem, kind in ((safe, "safetensors"), (pickled, "bin"))
        for name in (f"{stem}{variant}.{kind}", f"{stem}.{kind}.index{variant}.json")
    ]


def _alternatives(name: str) -> str:
    """Return a file of a diffusers folder and its alternatives, for a message."""
    if name in _TOKENIZER:
        return " or ".join(_TOKENIZER)
    part = name.split("/", 1)[0]
    candidates = [f"{part}/{each}" for each in part_weights(part)] if part in _DIFFUSERS_PARTS else []
    return f"weights, one of {', '.join(candidates)}" if name in candidates else name
