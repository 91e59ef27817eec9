"""What a UNet predicts, where its checkpoint or the caller says it, and where nobody does.

One module of a Stable Diffusion model in a checkpoint file: which of its tensors, under which keys.

The readers of the layouts describe a module by a `Weights`; loading it is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn

from refdiff.contracts.spec import Prediction
from refdiff.errors import InputError
from refdiff.models.configs import one_line
from refdiff.models.diffusion.sizes import DiffusionConfigs
from refdiff.models.files import read_checkpoint
from refdiff.models.fitting import check_kinds, fitted, stand_ins


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


Keys = Callable[[Sequence[str], Collection[str]], Mapping[str, str]]
"""From a module's names of its tensors, and the keys a file has, to the key of each name."""

_STACKED = (".in_proj_weight", ".in_proj_bias")
"""Torch's MultiheadAttention keeps its three projections in one tensor."""
_PROJECTIONS = {".q_proj.": 0, ".k_proj.": 1, ".v_proj.": 2}


def same_keys(names: Sequence[str], present: Collection[str]) -> Mapping[str, str]:  # noqa: ARG001 - a `Keys`
    """For a file that calls its tensors what the module does."""
    return {name: name for name in names}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where a module's tensors are."""

    file: Path
    """A checkpoint, or the index of its shards."""
    build: Callable[[], nn.Module]
    sized_by: Path | None = None
    """The file that states the sizes; None where the tensors show them."""
    keys: Keys = same_keys
    belongs: Callable[[str], bool] = bool
    """Of a key in the file: whether it has to find its place in the module."""

    def load(self) -> nn.Module:
        """The module in float32, eval mode, without gradients.

        Raises:
            InputError: the file cannot be read, or its tensors are not those of the module.
        """
        return self._fitted(read_checkpoint(self.file).tensors)

    def check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Refuse, without reading a weight, what `load` would refuse: names, shapes and kinds.

        Args:
            tensors: of `file`.

        Raises:
            InputError: the tensors are not those of the module.
        """
        self._fitted(stand_ins({key: tensor for key, tensor in tensors.items() if self.belongs(key)}))

    def _fitted(self, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        own = {key: tensor for key, tensor in tensors.items() if self.belongs(key)}
        check_kinds(own, self.file)
        module = self._empty()
        keys = self.keys(tuple(module.state_dict()), own)
        placed = {name: _piece(own[key], name, key) for name, key in keys.items() if key in own}
        used = set(keys.values())
        surplus = {key: tensor for key, tensor in own.items() if key not in used}
        return fitted(
            lambda: module, surplus | placed, file=self.file, written_as=lambda name: keys.get(name, name)
        )

    def _empty(self) -> nn.Module:
        try:
            with init_empty_weights(include_buffers=False):
                return self.build()
        except Exception as error:  # of whatever class the first line that cannot use a size raises
            raise InputError(
                f"{self.sized_by or self.file}: no module can be built of these sizes ({one_line(error)}); "
                "use a checkpoint of a known architecture"
            ) from error


def _piece(tensor: torch.Tensor, name: str, key: str) -> torch.Tensor:
    """A file's tensor as the module wants it: a view, never a copy."""
    if key.endswith(_STACKED):
        part = next(index for marker, index in _PROJECTIONS.items() if marker in name)
        rows = len(tensor) // 3
        return tensor[part * rows : (part + 1) * rows]
    if ".attentions.0.to_" in name and name.endswith(".weight") and tensor.ndim == 4:
        return tensor.flatten(1)  # the VAE's attention was written with 1x1 convolutions
    return tensor


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """What a reader of a layout returns: sizes, and component -> where its weights are."""

    configs: DiffusionConfigs
    weights: Mapping[str, Weights]
