"""The shipped miniatures as a `ModelStack`: half-precision safetensors in, float32 modules out.

Their tokenizer is CLIP's byte-pair encoding, reduced to the merges that the miniature's phrases need. Merges
keep their order, so words of the lexicon are tokenized exactly as in CLIP; other text is split into shorter
pieces, down to bytes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from refdiff.contracts.stack import ModelStack
from refdiff.errors import InputError
from refdiff.miniature import architecture
from refdiff.miniature.scenes import LEXICON
from refdiff.runtime.tokenizer import END, START, build_tokenizer_json

FIRST_MERGES = 128
"""Most frequent merges, kept in addition, so that words outside the lexicon are not all bytes."""


@functools.cache
def miniature_tokenizer_json() -> str:
    """Return the miniature's tokenizer as a bundle stores it."""
    vocabulary, merges = reduce_bpe(LEXICON)
    return build_tokenizer_json(vocabulary, merges)


@functools.cache
def vocabulary_size() -> int:
    """Return the number of tokens of the reduced vocabulary, start and end included."""
    return len(reduce_bpe(LEXICON)[0])


def reduce_bpe(words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Reduce CLIP's vocabulary to bytes and the merges of these words.

    Returns:
        Token -> id (bytes, bytes that end a word, merges in order, start, end), and the kept merges.
    """
    full = SimpleTokenizer()
    ranks: dict[tuple[str, str], int] = full.bpe_ranks
    kept = {pair for pair, rank in ranks.items() if rank < FIRST_MERGES}
    for word in words:
        kept |= _merges_of(word, ranks)
    merges = sorted(kept, key=ranks.__getitem__)
    single = list(full.byte_encoder.values())
    tokens = [*single, *(f"{byte}</w>" for byte in single), *("".join(pair) for pair in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def _merges_of(word: str, ranks: dict[tuple[str, str], int]) -> set[tuple[str, str]]:
    """Return the merges that CLIP's encoder applies to a word."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    used: set[tuple[str, str]] = set()
    while len(pieces) > 1:
        pair = min(pairwise(pieces), key=lambda p: ranks.get(p, len(ranks)))
        if pair not in ranks:
            break
        used.add(pair)
        merged, i = [], 0
        while i < len(pieces):
            joined = tuple(pieces[i : i + 2]) == pair
            merged.append("".join(pair) if joined else pieces[i])
            i += 2 if joined else 1
        pieces = merged
    return used


WEIGHTS = Path(__file__).parent / "weights"
"""Folder of one safetensors file per part: vae, text, unet, sam, clip, and edge-vae, edge-unet, edge-sam and
edge-clip of the small counterparts."""

TEXT_TOWER = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
"""Prefixes of CLIP's text encoder."""

NOT_SHIPPED = {
    "vae": ("decoder.", "post_quant_conv."),
    "edge-vae": ("decoder.",),
    "edge-clip": (*TEXT_TOWER, "logit_scale"),
}
"""File -> prefixes that it lacks: the VAEs' decoders, because the method never decodes (METHOD §4.8), and the
text encoder that both CLIPs have, which is in clip.safetensors."""

_PARTS: Mapping[str, Mapping[str, Callable[[], Any]]] = {
    architecture.MINIATURE.name: {
        "vae": architecture.autoencoder,
        "unet": architecture.unet,
        "sam": architecture.sam,
        "clip": lambda: architecture.clip(vocabulary_size()),
    },
    architecture.MINIATURE_EDGE.name: {
        "edge-vae": architecture.tiny_autoencoder,
        "edge-unet": architecture.small_unet,
        "edge-sam": architecture.tiny_sam,
        "edge-clip": lambda: architecture.small_clip(vocabulary_size()),
    },
}
"""Name of a miniature -> files of its parts and their builders; the text encoder is the same for both."""


def load_miniature(name: str = architecture.MINIATURE.name, *, weights: Path = WEIGHTS) -> ModelStack:
    """Build a miniature and load its weights, in eval mode.

    Args:
        name: "mini" or "mini-edge".
        weights: the folder of the weights.

    Raises:
        InputError: an unknown name; or a weight file is missing, or does not fit the architecture.
    """
    if name not in _PARTS:
        raise InputError(f"unknown miniature {name!r}; choose one of: {', '.join(_PARTS)}")
    text = architecture.text_encoder(vocabulary_size())
    parts: dict[str, Any] = {"text": text, **{file: build() for file, build in _PARTS[name].items()}}
    sources = {
        file.removeprefix("edge-"): _load(module, weights / f"{file}.safetensors")
        for file, module in parts.items()
    }
    modules = {file.removeprefix("edge-"): module for file, module in parts.items()}
    modules["text_encoder"] = modules.pop("text")
    is_edge = name == architecture.MINIATURE_EDGE.name
    if is_edge:
        whole = architecture.clip(vocabulary_size())
        sources["clip text"] = _load(whole, weights / "clip.safetensors")
        shared = {k: v for k, v in whole.state_dict().items() if k.startswith(NOT_SHIPPED["edge-clip"])}
        modules["clip"].load_state_dict(shared, strict=False)
    return ModelStack.of(
        spec=architecture.MINIATURE_EDGE if is_edge else architecture.MINIATURE,
        tokenizer_json=miniature_tokenizer_json(),
        sources=sources,
        modules=modules,
    )


def save_weights(parts: Mapping[str, Mapping[str, Tensor]], folder: Path) -> None:
    """Write the state of each part in half precision as safetensors, without what is not shipped."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in parts.items():
        shipped = {k: v for k, v in state.items() if not k.startswith(NOT_SHIPPED.get(name, ()))}
        halved = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in shipped.items()}
        safetensors.torch.save_file(halved, folder / f"{name}.safetensors")


def _load(module: nn.Module, path: Path) -> str:
    """Load one part, and return the SHA-256 of its file."""
    if not path.is_file():
        raise InputError(
            f"the miniature's weights {path.name} are missing; reinstall refdiff or run: make miniature"
        )
    data = path.read_bytes()
    state = {k: v.float() if v.is_floating_point() else v for k, v in safetensors.torch.load(data).items()}
    try:
        missing = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f"{path.name} does not fit the miniature's architecture: {error}") from error
    may_lack = NOT_SHIPPED.get(path.stem, ())
    absent = [key for key in missing.missing_keys if not key.startswith(may_lack)]
    if absent or missing.unexpected_keys:
        raise InputError(
            f"{path.name} does not fit the miniature's architecture: {len(absent)} tensors missing, "
            f"{len(missing.unexpected_keys)} unknown, e.g. {(absent + missing.unexpected_keys)[0]}"
        )
    module.eval().requires_grad_(requires_grad=False)
    return hashlib.sha256(data).hexdigest()
