"""Stable Diffusion from any usual checkpoint: a diffusers folder, or one file in the original layout.

In: a path and the side of the picture the model will look at. Out: a `Part` whose modules are loaded when
they are asked for; whatever is wrong with names or shapes is found before.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

from refdiff.contracts.spec import DiffusionSpec, Prediction
from refdiff.errors import InputError
from refdiff.models.diffusion.diffusers_folder import read_folder
from refdiff.models.diffusion.ldm import read_ldm
from refdiff.models.diffusion.taps import diffusion_spec
from refdiff.models.files import read_checkpoint, refusing_what_cannot_be_read
from refdiff.models.fitting import Part


def load_diffusion(source: Path, *, image_size: int, prediction: str | None = None) -> Part[DiffusionSpec]:
    """Find a Stable Diffusion model, check it, and say how to load it.

    Args:
        source: a diffusers folder (with a model_index.json), or a file in the original layout.
        image_size: side in px of the square picture.
        prediction: "epsilon" or "v_prediction"; needed where the checkpoint does not tell (SD 2.x in one
            file), refused where it tells otherwise.

    Returns:
        The components text_encoder, vae (without its decoder) and unet, none of them in memory yet.

    Raises:
        InputError: no such checkpoint, it is damaged or incomplete, of a model the method cannot use, or
            contradicts an argument.
    """
    wanted = _prediction(prediction)
    with refusing_what_cannot_be_read(source):
        if not source.exists():
            raise InputError(f"diffusion checkpoint {source} does not exist; name a folder or file that does")
        found = read_folder(source, wanted) if source.is_dir() else read_ldm(source, wanted)
    spec = diffusion_spec(found.configs, image_size, whose=str(source))
    checkpoints = {file: read_checkpoint(file) for file in {part.file for part in found.weights.values()}}
    for part in found.weights.values():
        part.check(checkpoints[part.file].tensors)
    return Part(
        spec=spec,
        loaders={name: part.load for name, part in found.weights.items()},
        sources={name: checkpoints[part.file].sha256 for name, part in found.weights.items()},
        vocabulary=found.configs.text["vocab_size"],
    )


def _prediction(given: str | None) -> Prediction | None:
    known = get_args(Prediction)
    if given is not None and given not in known:
        raise InputError(f"unknown prediction {given!r}; choose one of: {', '.join(known)}")
    return cast("Prediction | None", given)
