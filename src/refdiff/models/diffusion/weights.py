"""The tensors of each module of a Stable Diffusion model in its checkpoint files.

The readers of the layouts describe each module by a `Weights`; checking and loading it is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import init_empty_weights
from torch import nn

from refdiff.contracts.spec import Prediction
from refdiff.errors import InputError
from refdiff.models.checkpoint import read_checkpoint
from refdiff.models.configs import one_line
from refdiff.models.diffusion.sizes import DiffusionConfigs
from refdiff.models.fitting import check_dtypes, fit_module, make_stand_ins


def choose_prediction(
    stated: Prediction | None, asked: Prediction | None, file: Path, *, second_generation: bool
) -> Prediction:
    """Return what the UNet predicts.

    Args:
        stated: by the checkpoint, if it states it.
        asked: by the caller, if given.
        file: that states it or not, for messages.
        second_generation: whether the model is of Stable Diffusion 2.x, which was published with either;
            every model of the first generation predicts the noise.

    Raises:
        InputError: checkpoint and caller contradict each other, or neither decides.
    """
    if stated is not None and asked not in (None, stated):
        raise InputError(f"got prediction {asked}, but {file} says {stated}; leave the option out")
    if stated is None and asked is None and second_generation:
        raise InputError(
            f"{file} is of Stable Diffusion 2.x and does not state what the UNet predicts; pass "
            "--prediction epsilon (the 512 px base models) or --prediction v_prediction (768 px)"
        )
    return stated or asked or "epsilon"


UnetSet = Literal["ema", "non-ema"]
"""The UNet's weights averaged over the training (EMA), or those of its last step."""

Keys = Callable[[Sequence[str], Collection[str]], Mapping[str, str]]
"""From a module's tensor names and a file's keys to the key of each name."""

_STACKED = (".in_proj_weight", ".in_proj_bias")
"""Torch's MultiheadAttention keeps its three projections in one tensor."""
_PROJECTIONS = {".q_proj.": 0, ".k_proj.": 1, ".v_proj.": 2}


def same_keys(names: Sequence[str], present: Collection[str]) -> Mapping[str, str]:  # noqa: ARG001 - a `Keys`
    """Return the names themselves, for a file that uses the module's."""
    return {name: name for name in names}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The location of a module's tensors, and the function that builds it."""

    file: Path
    """A checkpoint, or the index of its shards."""
    build: Callable[[], nn.Module]
    sized_by: Path | None = None
    """The file that states the sizes; None if they are inferred from the tensors."""
    keys: Keys = same_keys
    belongs: Callable[[str], bool] = bool
    """Predicate: true if the tensor under a key is part of the module."""

    def load(self) -> nn.Module:
        """Read the module: float32, in eval mode, without gradients.

        Raises:
            InputError: the file cannot be read, or its tensors are not those of the module.
        """
        return self._fit(read_checkpoint(self.file).tensors)

    def check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Refuse what `load` would refuse for its names, shapes or dtypes, without reading a weight.

        Args:
            tensors: of `file`.

        Raises:
            InputError: the tensors are not those of the module.
        """
        self._fit(make_stand_ins({key: tensor for key, tensor in tensors.items() if self.belongs(key)}))

    def _fit(self, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        own = {key: tensor for key, tensor in tensors.items() if self.belongs(key)}
        check_dtypes(own, self.file)
        module = self._empty()
        keys = self.keys(tuple(module.state_dict()), own)
        placed = {name: _piece(own[key], name, key) for name, key in keys.items() if key in own}
        used = set(keys.values())
        surplus = {key: tensor for key, tensor in own.items() if key not in used}
        return fit_module(
            lambda: module, surplus | placed, file=self.file, written_as=lambda name: keys.get(name, name)
        )

    def _empty(self) -> nn.Module:
        try:
            with init_empty_weights(include_buffers=False):
                return self.build()
        except Exception as error:  # its class depends on the line that cannot use a size
            raise InputError(
                f"{self.sized_by or self.file}: no module can be built of these sizes ({one_line(error)}); "
                "use a checkpoint of a known architecture"
            ) from error


def _piece(tensor: torch.Tensor, name: str, key: str) -> torch.Tensor:
    """Return a file's tensor as the module needs it: a view, never a copy."""
    if key.endswith(_STACKED):
        part = next(index for marker, index in _PROJECTIONS.items() if marker in name)
        rows = len(tensor) // 3
        return tensor[part * rows : (part + 1) * rows]
    if ".attentions.0.to_" in name and name.endswith(".weight") and tensor.ndim == 4:
        return tensor.flatten(1)  # the VAE's attention was written with 1x1 convolutions
    return tensor


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """Result of a layout's reader."""

    configs: DiffusionConfigs
    weights: Mapping[str, Weights]
    """By component."""
    unet_set: str | None = None
    """"EMA" or "non-EMA" if the source holds both sets of the UNet's weights, or one was asked for."""
