"""The autoencoder of a diffusion model, as a folder or file of its own.

In: a diffusers folder of an AutoencoderKL or AutoencoderTiny, or TAESD's encoder as its author saves it. Out:
the sizes, and where the tensors are. TAESD's original file has the layers of the encoder alone, by number:
convolutions, and blocks of three. The number of its input's channels and the names tell it from a decoder;
nothing tells the encoders for the latents of SD 1.x and of SDXL apart but the file's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny

from refdiff.errors import InputError
from refdiff.models.checkpoint import read_checkpoint
from refdiff.models.configs import Shapes, positive, read_json
from refdiff.models.diffusion.diffusers_configs import module_config
from refdiff.models.diffusion.sizes import (
    SCALING_FACTOR,
    TAESD,
    TINY_VAE_FIELDS,
    VAE_FIELDS,
    Config,
    DiffusionConfigs,
    build_vae,
)
from refdiff.models.diffusion.weights import Weights
from refdiff.models.hub.names import DIFFUSERS_INDEX, part_weights

VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny")

_OLD_ATTENTION = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
"""The VAE's attention, as diffusers before 0.17 wrote it."""

_DECODING = ("decoder.", "post_quant_conv.")
_OF_DECODER = re.compile(r"(out_channels|up\w*|block_out_channels|.*decoder.*|latent_(magnitude|shift))")
"""Fields of AutoencoderTiny without effect on its encoder."""

_OTHER_LATENTS = {"taesdxl": "SDXL", "taesd3": "SD 3", "taef1": "Flux", "taef2": "Flux 2", "taesana": "Sana"}
"""Start of a published file's or repository's name -> the models whose latents it makes."""

_LAYER = re.compile(r"(\d+)\.(conv\.0\.)?weight")


@dataclass(frozen=True, kw_only=True)
class FoundVae:
    """An autoencoder in a folder or file."""

    config: Config
    """See `DiffusionConfigs.vae`."""
    scaling_factor: float | None
    """Of the latents of an AutoencoderKL; None for an AutoencoderTiny, which scales them itself."""
    file: Path
    sized_by: Path | None
    keys: Callable[[Sequence[str], Collection[str]], Mapping[str, str]]

    def put_into(self, configs: DiffusionConfigs) -> DiffusionConfigs:
        """Return a model's configs with this autoencoder."""
        return replace(configs, vae=self.config, scaling_factor=self.scaling_factor or configs.scaling_factor)

    def weights(self, configs: DiffusionConfigs) -> Weights:
        """Return where the tensors are, for the configs that this autoencoder was put into."""
        return Weights(
            file=self.file,
            build=partial(build_vae, configs),
            sized_by=self.sized_by,
            keys=self.keys,
            belongs=lambda key: not key.startswith(_DECODING),
        )


def find_vae(source: Path) -> FoundVae:
    """Describe an autoencoder.

    Args:
        source: a folder with a config.json, or a file of TAESD's encoder.

    Raises:
        InputError: it is missing, damaged, the decoder, or made for another model's latents.
    """
    other = next((model for name, model in _OTHER_LATENTS.items() if name in source.name.lower()), None)
    if other is not None:
        raise InputError(
            f"{source}: by its name this autoencoder makes latents of {other}, expected those of Stable "
            "Diffusion 1.x and 2.x; use taesd_encoder or madebyollin/taesd"
        )
    if not source.exists():
        raise InputError(f"VAE {source} does not exist; name a folder or file that does")
    if not source.is_dir():
        return _find_original(source)
    if (source / DIFFUSERS_INDEX).is_file():
        raise InputError(
            f"{source} is a whole model, expected an autoencoder; name its folder {source / 'vae'}"
        )
    file = source / "config.json"
    if not file.is_file():
        raise InputError(f"{source} has no config.json, expected an autoencoder's folder; fetch it again")
    return read_vae_folder(source, read_json(file))


def read_vae_folder(folder: Path, document: Mapping[str, Any]) -> FoundVae:
    """Describe the autoencoder in a diffusers folder.

    Args:
        folder: with a config.json and the weights.
        document: content of the config.json.

    Raises:
        InputError: its class or a field is none that the method can use, or there are no weights.
    """
    file = folder / "config.json"
    kind = document.get("_class_name", VAE_CLASSES[0])
    if kind not in VAE_CLASSES:
        raise InputError(
            f"{file}: _class_name names {kind!r}, expected {' or '.join(map(repr, VAE_CLASSES))}; "
            "use the autoencoder of Stable Diffusion 1.x or 2.x, or TAESD"
        )
    names = part_weights("vae")
    weights = next((folder / name for name in names if (folder / name).is_file()), None)
    if weights is None:
        raise InputError(f"{folder} has no weights, expected one of {', '.join(names)}; fetch it again")
    if kind == "AutoencoderKL":
        return FoundVae(
            config=module_config(AutoencoderKL, document, VAE_FIELDS, file),
            scaling_factor=positive(document.get("scaling_factor", SCALING_FACTOR), "scaling_factor", file),
            file=weights,
            sized_by=file,
            keys=_names_of_either_age,
        )
    own = {key: value for key, value in document.items() if not _OF_DECODER.fullmatch(key)}
    config = module_config(AutoencoderTiny, own, TINY_VAE_FIELDS, file)
    scaling = positive(document.get("scaling_factor", TAESD["scaling_factor"]), "scaling_factor", file)
    return FoundVae(
        config={**config, "scaling_factor": scaling},
        scaling_factor=None,
        file=weights,
        sized_by=file,
        keys=lambda names, _: {name: name for name in names},
    )


def _find_original(file: Path) -> FoundVae:
    """Describe the file of an encoder, as TAESD's author saves it."""
    shapes = Shapes(file, read_checkpoint(file).tensors)
    _check_original(shapes)
    layers = {
        int(match[1]): match[2] is not None
        for match in map(_LAYER.fullmatch, shapes.tensors)
        if match is not None
    }
    last = max(layers)
    # A level starts with a convolution, and the last convolution makes the latent.
    starts = [layer for layer, is_block in sorted(layers.items()) if not is_block and layer != last]
    ends = [*starts[1:], last]
    config = {
        **TAESD,
        "latent_channels": shapes.shape(f"{last}.weight", 4)[0],
        "encoder_block_out_channels": tuple(shapes.shape(f"{start}.weight", 4)[0] for start in starts),
        "num_encoder_blocks": tuple(end - start - 1 for start, end in zip(starts, ends, strict=True)),
    }
    return FoundVae(
        config=config,
        scaling_factor=None,
        file=file,
        sized_by=None,
        keys=lambda names, _: {name: name.removeprefix("encoder.layers.") for name in names},
    )


def _check_original(shapes: Shapes) -> None:
    """Refuse everything but an encoder that starts with a convolution of an image."""
    expected = "expected TAESD's encoder, as in taesd_encoder.safetensors"
    if shapes.any_below("encoder.layers.", "encoder.down_blocks."):
        raise InputError(
            f"{shapes.file} is a file of diffusers, which states its sizes in a config.json next to it; name "
            f"the folder {shapes.file.parent}"
        )
    if "0.weight" not in shapes.tensors and "1.weight" in shapes.tensors:
        raise InputError(f"{shapes.file} is TAESD's decoder: its first layer is number 1; {expected}")
    if "0.weight" not in shapes.tensors:
        first = next(iter(shapes.tensors))
        raise InputError(f"{shapes.file} is no autoencoder of a known layout: it holds {first}; {expected}")
    inputs = shapes.shape("0.weight", 4)[1]
    if inputs != TAESD["in_channels"]:
        raise shapes.error(
            "0.weight", f"reads {inputs} channels, not an image's {TAESD['in_channels']}; {expected}"
        )
    if "1.conv.0.weight" not in shapes.tensors:
        raise shapes.error("1.conv.0.weight", f"is missing, as in an encoder of another kind; {expected}")


def _names_of_either_age(names: Sequence[str], present: Collection[str]) -> Mapping[str, str]:
    old = {name: _old_attention(name) for name in names}
    return {name: key if key in present else name for name, key in old.items()}


def _old_attention(name: str) -> str:
    for new, old in _OLD_ATTENTION.items():
        name = name.replace(new, old)
    return name
