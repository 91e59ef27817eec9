"""What a single file says about itself, beyond the shapes of its tensors: its kind, prediction and schedule.

A statement is used, or contradicts another one and is an error; none is passed over. Sources: the metadata of
Stability-AI/ModelSpec and of kohya-ss/sd-scripts, the marker tensors that ComfyUI reads, and the noise
schedule that CompVis/latent-diffusion saves with the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from refdiff.contracts.spec import Prediction
from refdiff.errors import InputError
from refdiff.models.configs import Shapes
from refdiff.models.diffusion.ldm_sizes import OPEN_CLIP, TEXT, UNET, VAE
from refdiff.models.diffusion.sizes import BETAS, TRAIN_TIMESTEPS

_OTHER_MODELS = {
    "conditioner.embedders.": "SDXL, which has two text encoders",
    f"{UNET}label_emb.": "SDXL or a class-conditional model, whose UNet wants more than a text",
    **{f"{prefix}joint_blocks.": "SD 3, which has no UNet" for prefix in ("", UNET)},
    **{f"{prefix}double_blocks.": "Flux, which has no UNet" for prefix in ("", UNET)},
    "control_model.": "ControlNet, whose UNet wants a second image",
    "edm_": "a model of another noise schedule (EDM)",
}
"""Start of a key -> the model it belongs to."""

_OTHER_FILES = {
    r"lora_(unet|te\d?)_|.*\.(lora_|hada_|lokr_).*|.*lora_(up|down|A|B)\.": "a LoRA",
    r"(.*\.)?(zero_convs|input_hint_block|controlnet_\w+)\.": "a ControlNet, without the model it controls",
    r"(down_blocks|up_blocks|mid_block)\.": "a diffusers UNet; name its whole folder",
    r"(encoder|decoder)\.(down|up|mid|conv_in)": "an autoencoder alone",
    r"string_to_(param|token)|emb_params|clip_[gl]$": "a textual inversion",
    r"(module\.)?(visual|vision_model|text_model|transformer)\.": "a CLIP; pass it as --clip",
    r"(module\.)?(image_encoder|vision_encoder|mask_decoder|prompt_encoder)\.": "a SAM; pass it as --sam",
    r"model_ema\.": "averaged weights alone",
}
"""Pattern of the start of a key, in a file that lacks a part -> what the file probably is."""

_PREDICTIONS: Mapping[str, Prediction] = {
    **dict.fromkeys(("epsilon", "eps", "noise"), "epsilon"),
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "vpred", "v_pred"), "v_prediction"),
}
_ARCHITECTURE = "modelspec.architecture"
_ARCHITECTURES: Mapping[str, Prediction | None] = {
    "stable-diffusion-v1": None,
    "stable-diffusion-v2-512": "epsilon",
    "stable-diffusion-v2-768-v": "v_prediction",
}
"""Names of ModelSpec that the method can use -> the prediction that a name implies."""

_PREDICTION_FIELD = re.compile(r"(.*[._])?(prediction_type|parameterization)")
_V_FIELD = re.compile(r"(.*[._])?(v_?parameterization|v_?pred(iction)?)")
_ZERO_SNR_FIELD = re.compile(r"(.*[._])?(zero_terminal_snr|zt_?snr|rescale_betas_zero_snr)")
_V_KEY, _ZERO_SNR_KEY = "v_pred", "ztsnr"
_FALSE = ("", "false", "0", "no", "none", "null")

_SCHEDULE_TOLERANCE = 1e-4


def check_kind(shapes: Shapes) -> None:
    """Refuse a file of another model, or without one of the three parts.

    Raises:
        InputError: it is one; the message says what the file probably is.
    """
    for start, whose in _OTHER_MODELS.items():
        key = next((key for key in shapes.tensors if key.startswith(start)), None)
        if key is not None:
            raise InputError(
                f"{shapes.file}: tensor {key} belongs to {whose}; use a checkpoint of Stable Diffusion 1.x "
                "or 2.x"
            )
    parts = (("UNet", (UNET,)), ("VAE", (VAE,)), ("text encoder", (TEXT, OPEN_CLIP)))
    for part, prefixes in parts:
        if not shapes.any_below(*prefixes):
            raise InputError(
                f"{shapes.file} holds no {part}: no key starts with {' or '.join(prefixes)}{_guess(shapes)}; "
                "use a file with all parts in Stable Diffusion's original layout, or a diffusers folder"
            )


def _guess(shapes: Shapes) -> str:
    """Return what the file probably is, or its first keys."""
    for pattern, what in _OTHER_FILES.items():
        key = next((key for key in shapes.tensors if re.match(pattern, key)), None)
        if key is not None:
            return f", and its key {key} looks like {what}"
    return f", its keys are {', '.join(list(shapes.tensors)[:3])} ..."


def read_prediction(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], file: Path
) -> Prediction | None:
    """Return the prediction that the file states; None if it states none.

    Args:
        tensors: of the file.
        metadata: of its header.
        file: for messages.

    Raises:
        InputError: statements contradict each other, or the file states another kind of model or another
            noise schedule than Stable Diffusion's.
    """
    _check_architecture(metadata, file)
    _check_schedule(tensors, metadata, file)
    stated = dict(_predictions(tensors, metadata, file))
    if len(set(stated.values())) > 1:
        views = " but ".join(f"its {where} says {what}" for where, what in stated.items())
        raise InputError(f"{file} contradicts itself: {views}; fetch the original file")
    return next(iter(stated.values()), None)


def check_generation(metadata: Mapping[str, str], file: Path, *, second_generation: bool) -> None:
    """Refuse metadata of the other generation than the tensors'.

    Raises:
        InputError: they contradict each other.
    """
    stated = metadata.get(_ARCHITECTURE, "")
    generation = "2" if second_generation else "1"
    if stated and not stated.startswith(f"stable-diffusion-v{generation}"):
        raise InputError(
            f"{file}: its metadata says {_ARCHITECTURE} = {stated!r}, its tensors are those of Stable "
            f"Diffusion {generation}.x; fetch the original file"
        )


def _predictions(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], file: Path
) -> Iterator[tuple[str, Prediction]]:
    """Yield each statement, and where it is made."""
    if _V_KEY in tensors:
        yield f"tensor {_V_KEY}", "v_prediction"
    for field, text in metadata.items():
        value = text.strip().lower()
        if _PREDICTION_FIELD.fullmatch(field) and not _V_FIELD.fullmatch(field):
            if value not in _PREDICTIONS:
                raise InputError(
                    f"{file}: its metadata says {field} = {text!r}, expected epsilon or v; use a checkpoint "
                    "of Stable Diffusion 1.x or 2.x"
                )
            yield f"metadata {field}", _PREDICTIONS[value]
        elif _V_FIELD.fullmatch(field):
            yield f"metadata {field}", "epsilon" if value in _FALSE else "v_prediction"
    implied = _ARCHITECTURES.get(metadata.get(_ARCHITECTURE, ""))
    if implied is not None:
        yield f"metadata {_ARCHITECTURE}", implied


def _check_architecture(metadata: Mapping[str, str], file: Path) -> None:
    stated = metadata.get(_ARCHITECTURE)
    if stated is not None and stated not in _ARCHITECTURES:
        raise InputError(
            f"{file}: its metadata says {_ARCHITECTURE} = {stated!r}, expected one of "
            f"{', '.join(_ARCHITECTURES)}; use a whole text-to-image checkpoint"
        )


def _check_schedule(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], file: Path) -> None:
    """Refuse a noise schedule that the method does not compute with."""
    advice = "the method knows the schedule of Stable Diffusion 1.x and 2.x only; use another checkpoint"
    said = [f"tensor {_ZERO_SNR_KEY}"] if _ZERO_SNR_KEY in tensors else []
    said += [
        f"metadata {field}"
        for field, text in metadata.items()
        if _ZERO_SNR_FIELD.fullmatch(field) and text.strip().lower() not in _FALSE
    ]
    if said:
        raise InputError(f"{file}: its {said[0]} says that its noise schedule ends at zero SNR; {advice}")
    betas = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    for key, expected in (("betas", betas), ("alphas_cumprod", torch.cumprod(1 - betas, 0))):
        saved = tensors.get(key)
        if saved is None or saved.is_meta:
            continue
        close = saved.shape == expected.shape and saved.is_floating_point()
        # Half precision keeps three digits.
        tolerance = max(_SCHEDULE_TOLERANCE, torch.finfo(saved.dtype).eps) if close else 0.0
        if not close or not bool(((saved.double() - expected).abs() <= tolerance).all()):
            raise InputError(f"{file}: its tensor {key} is not Stable Diffusion's noise schedule; {advice}")
