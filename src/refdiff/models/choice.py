"""Choose a model stack by its name, or by its three parts, and load it as torch modules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.contracts.inspection import MINIATURE_NAME
from refdiff.contracts.manifest import MANIFEST_NAME
from refdiff.contracts.optional import require_export
from refdiff.contracts.progress import Progress, silent
from refdiff.errors import InputError
from refdiff.models.presets import PRESETS

if TYPE_CHECKING:
    from refdiff.contracts.stack import ModelStack

MODELS = (MINIATURE_NAME, *PRESETS)
"""Names of stacks."""

DEFAULT_SIZE = 512
"""Side in px of the image that Stable Diffusion encodes: SD 1.5's training size. The release's 1024 takes six
times the arithmetic."""


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A model stack, and where its parts come from.

    Each part is a hub id, a folder or a file; None: that of the named model. With `random_weights` a part is
    the name of an architecture instead, such as "vit_l".
    """

    name: str = MINIATURE_NAME
    diffusion: str | None = None
    sam: str | None = None
    clip: str | None = None
    size: int | None = None
    """Side in px of the image that Stable Diffusion encodes; None: `DEFAULT_SIZE`, or the miniature's."""
    prediction: str | None = None
    """Prediction type of the UNet, if its checkpoint does not state it: "epsilon" or "v_prediction"."""
    diffusion_weights: str | None = None
    """Which of the UNet's two sets of weights: "ema" or "non-ema"; None: "non-ema" of a named model, as the
    paper's release, and see `diffusion.load_diffusion` for others."""
    clip_activation: str | None = None
    """If CLIP's checkpoint does not state it: "gelu" or "quick_gelu"."""
    random_weights: bool = False
    seed: int | None = None
    """Seed of random weights; None: 0."""
    checkpoints: Path | None = None
    """The folder that `refdiff fetch` filled."""
    offline: bool = False
    """Never use the network."""

    @property
    def built_in(self) -> bool:
        """True for the miniature, which is part of the package."""
        return self.name == MINIATURE_NAME

    @property
    def title(self) -> str:
        """The stack's name in the manifest: the model's, with "-custom" if a part was replaced."""
        return f"{self.name}-custom" if any((self.diffusion, self.sam, self.clip)) else self.name

    def check(self) -> None:
        """Refuse a choice that cannot be loaded, before anything is read.

        Raises:
            InputError: no such model, or options that it does not take.
        """
        if self.name not in MODELS:
            if (Path(self.name) / MANIFEST_NAME).is_file():
                raise InputError(
                    f"{self.name} is a bundle, expected a model: {', '.join(MODELS)}; "
                    f"convert a bundle with: refdiff convert {self.name}"
                )
            raise InputError(f"unknown model {self.name!r}; choose one of: {', '.join(MODELS)}")
        given = self._given()
        if self.built_in and given:
            raise InputError(
                f"the miniature takes no {given[0]}: its weights are built in; "
                f"name a model: {', '.join(PRESETS)}"
            )
        if self.seed is not None and not self.random_weights:
            raise InputError(
                f"got --seed {self.seed} without --random-weights, which it belongs to; leave it out"
            )
        if self.random_weights and any(
            (self.prediction, self.clip_activation, self.diffusion_weights, self.checkpoints)
        ):
            raise InputError(
                "--random-weights reads no checkpoint: leave out --checkpoints, --prediction and the like"
            )

    def _given(self) -> list[str]:
        """Return the options that choose or change a part."""
        options = {
            "--diffusion": self.diffusion,
            "--sam": self.sam,
            "--clip": self.clip,
            "--size": self.size,
            "--prediction": self.prediction,
            "--clip-activation": self.clip_activation,
            "--diffusion-weights": self.diffusion_weights,
            "--random-weights": self.random_weights or None,
            "--checkpoints": self.checkpoints,
        }
        return [option for option, value in options.items() if value is not None]


def load_choice(choice: ModelChoice, purpose: str, progress: Progress = silent) -> ModelStack:
    """Load the torch stack of a choice.

    Args:
        choice: the models.
        purpose: what they are for, in messages.
        progress: receives a line at each step.

    Raises:
        InputError: an unknown model, or a checkpoint that cannot be used. MissingDependencyError: a package
        of the extra `export` is not installed, or a checkpoint is missing and
            cannot be downloaded.
    """
    choice.check()
    if choice.built_in:
        return load_miniature(purpose)
    preset, size = PRESETS[choice.name], DEFAULT_SIZE if choice.size is None else choice.size
    with require_export(purpose):
        from refdiff.models.stacks import checkpoint_stack, random_stack
    if choice.random_weights:
        return random_stack(
            choice.title,
            diffusion=choice.diffusion or preset.diffusion.architecture,
            sam=choice.sam or preset.sam.architecture,
            clip=choice.clip or preset.clip.architecture,
            image_size=size,
            seed=choice.seed or 0,
        )
    with require_export(purpose):
        from refdiff.models.diffusion import check_unet_set
        from refdiff.models.hub.download import resolve
    unet_set = check_unet_set(choice.diffusion_weights) or (None if choice.diffusion else "non-ema")
    paths = {
        part: resolve(
            given or own.repo,
            checkpoints=choice.checkpoints,
            offline=choice.offline,
            non_ema=part == "diffusion" and unet_set == "non-ema",
            progress=progress,
        )
        for part, given, own in (
            ("diffusion", choice.diffusion, preset.diffusion),
            ("sam", choice.sam, preset.sam),
            ("clip", choice.clip, preset.clip),
        )
    }
    return checkpoint_stack(
        choice.title,
        image_size=size,
        prediction=choice.prediction,
        unet_set=unet_set,
        activation=choice.clip_activation or (None if choice.clip else preset.clip.activation),
        **paths,
    )


def load_miniature(purpose: str) -> ModelStack:
    """Load the miniature's torch modules.

    Raises:
        MissingDependencyError: a package of the extra `export` is not installed.
    """
    with require_export(purpose):
        from refdiff.miniature import stack
    return stack.load_miniature()
