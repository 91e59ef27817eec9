"""Stable Diffusion's checkpoints: diffusers folders, and single files in the original layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from refdiff.contracts.spec import DiffusionSpec, Prediction
from refdiff.errors import InputError
from refdiff.models.checkpoint import read_checkpoint, report_read_errors
from refdiff.models.diffusion.diffusers_folder import read_folder
from refdiff.models.diffusion.ldm import read_ldm
from refdiff.models.diffusion.sizes import (
    BK_SDM_BASE,
    BK_SDM_SMALL,
    BK_SDM_TINY,
    SD15,
    SD21,
    TAESD,
    DiffusionConfigs,
    build_text_encoder,
    build_unet,
    build_vae,
)
from refdiff.models.diffusion.taps import TapPaths, diffusion_spec
from refdiff.models.diffusion.vae import FoundVae, find_vae
from refdiff.models.diffusion.weights import FoundModel, UnetSet
from refdiff.models.fitting import Part

__all__ = [
    "BK_SDM_BASE",
    "BK_SDM_SMALL",
    "BK_SDM_TINY",
    "SD15",
    "SD21",
    "TAESD",
    "DiffusionConfigs",
    "TapPaths",
    "build_text_encoder",
    "build_unet",
    "build_vae",
    "diffusion_spec",
    "load_diffusion",
]


def load_diffusion(
    source: Path,
    *,
    image_size: int,
    prediction: str | None = None,
    unet_set: str | None = None,
    vae: Path | None = None,
    taps: TapPaths = "all",
) -> Part[DiffusionSpec]:
    """Open a Stable Diffusion checkpoint, and check it.

    Args:
        source: a diffusers folder (with a model_index.json), or a file in the original layout.
        image_size: side in px of the square image.
        prediction: "epsilon" or "v_prediction"; needed if the checkpoint does not state it (SD 2.x in one
            file), refused if it states the other.
        unet_set: "ema" or "non-ema", where the checkpoint holds both sets of the UNet's weights; None for the
            one that is not averaged of a file, and for the one without a suffix of a folder.
        vae: an autoencoder in place of the model's: see `vae.find_vae`.
        taps: see `taps.diffusion_spec`.

    Returns:
        The components text_encoder, vae (without its decoder) and unet, none of them in memory yet.

    Raises:
        InputError: the checkpoint does not exist, is damaged or incomplete, is of a model that the method
            cannot use, or contradicts an argument.
    """
    wanted = _check_prediction(prediction)
    with report_read_errors(source):
        if not source.exists():
            raise InputError(f"diffusion checkpoint {source} does not exist; name a folder or file that does")
        own_vae = None if vae is None else find_vae(vae)
        if source.is_dir():
            found = read_folder(source, wanted, check_unet_set(unet_set), vae=own_vae)
        else:
            found = read_ldm(source, wanted, check_unet_set(unet_set))
            found = found if own_vae is None else _with_vae(found, own_vae)
    spec = diffusion_spec(
        found.configs, image_size, taps=taps, whose=str(source) if vae is None else f"{source} with {vae}"
    )
    checkpoints = {file: read_checkpoint(file) for file in {part.file for part in found.weights.values()}}
    for part in found.weights.values():
        part.check(checkpoints[part.file].tensors)
    sources = {name: checkpoints[part.file].sha256 for name, part in found.weights.items()}
    if found.unet_set is not None:  # one file may hold both
        sources["unet"] += f", {found.unet_set} weights"
    return Part(
        spec=spec,
        loaders={name: part.load for name, part in found.weights.items()},
        sources=sources,
        vocabulary=found.configs.text["vocab_size"],
    )


def _with_vae(found: FoundModel, vae: FoundVae) -> FoundModel:
    """Return a model with another autoencoder."""
    configs = vae.put_into(found.configs)
    return replace(found, configs=configs, weights={**found.weights, "vae": vae.weights(configs)})


def check_unet_set(given: str | None) -> UnetSet | None:
    """Return the option `--diffusion-weights`.

    Raises:
        InputError: it is unknown.
    """
    known = get_args(UnetSet)
    if given is not None and given not in known:
        raise InputError(f"unknown --diffusion-weights {given!r}; choose one of: {', '.join(known)}")
    return cast("UnetSet | None", given)


def _check_prediction(given: str | None) -> Prediction | None:
    known = get_args(Prediction)
    if given is not None and given not in known:
        raise InputError(f"unknown prediction {given!r}; choose one of: {', '.join(known)}")
    return cast("Prediction | None", given)
