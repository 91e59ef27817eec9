"""The shipped miniature as a `ModelStack`: half-precision safetensors in, float32 modules out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from refdiff.contracts.stack import ModelStack
from refdiff.errors import InputError
from refdiff.miniature import architecture
from refdiff.miniature.vocabulary import miniature_tokenizer_json, vocabulary_size

WEIGHTS = Path(__file__).parent / "weights"
"""One safetensors file per part: vae, text, unet, sam, clip."""

NOT_SHIPPED = ("decoder.", "post_quant_conv.")
"""The VAE's decoder: the method never decodes (METHOD §4), so its weights stay at home."""


def load_miniature(weights: Path = WEIGHTS) -> ModelStack:
    """Build the miniature and load its weights, in eval mode.

    Raises:
        InputError: a weight file is missing, or does not fit the architecture.
    """
    vocabulary = vocabulary_size()
    text, vae, unet = architecture.text_encoder(vocabulary), architecture.autoencoder(), architecture.unet()
    sam, clip = architecture.sam(), architecture.clip(vocabulary)
    parts: dict[str, nn.Module] = {"vae": vae, "text": text, "unet": unet, "sam": sam, "clip": clip}
    sources = {name: _load(module, weights / f"{name}.safetensors") for name, module in parts.items()}
    return ModelStack.of(
        spec=architecture.MINIATURE,
        tokenizer_json=miniature_tokenizer_json(),
        sources=sources,
        modules={"text_encoder": text, "vae": vae, "unet": unet, "sam": sam, "clip": clip},
    )


def save_weights(parts: Mapping[str, Mapping[str, Tensor]], folder: Path) -> None:
    """Write each part's state in half precision as safetensors, the VAE's without its decoder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in parts.items():
        shipped = {k: v for k, v in state.items() if not (name == "vae" and k.startswith(NOT_SHIPPED))}
        halved = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in shipped.items()}
        safetensors.torch.save_file(halved, folder / f"{name}.safetensors")


def _load(module: nn.Module, path: Path) -> str:
    """Load one part and return its file's sha256."""
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
    absent = [key for key in missing.missing_keys if not (path.stem == "vae" and key.startswith(NOT_SHIPPED))]
    if absent or missing.unexpected_keys:
        raise InputError(
            f"{path.name} does not fit the miniature's architecture: {len(absent)} tensors missing, "
            f"{len(missing.unexpected_keys)} unknown, e.g. {(absent + missing.unexpected_keys)[0]}"
        )
    module.eval().requires_grad_(requires_grad=False)
    return hashlib.sha256(data).hexdigest()
