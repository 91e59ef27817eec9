"""What a UNet predicts, where its checkpoint or the caller says it, and where nobody does."""

from __future__ import annotations

from pathlib import Path

from refdiff.contracts.spec import Prediction
from refdiff.errors import InputError


def told_prediction(told: Prediction | None, file: Path, *, second_generation: bool) -> Prediction:
    """What was told, or what all models of the first generation predict: the noise.

    Args:
        told: by the checkpoint or the caller; None where neither says.
        file: that does not say, for messages.
        second_generation: whether the model is of Stable Diffusion 2.x, which was published with either.

    Raises:
        InputError: nobody tells, and the model may predict either.
    """
    if told is None and second_generation:
        raise InputError(
            f"{file} is of Stable Diffusion 2.x and does not tell what the UNet predicts; "
            "say it: --prediction epsilon (the 512 px base models) or --prediction v_prediction (768 px)"
        )
    return told or "epsilon"
