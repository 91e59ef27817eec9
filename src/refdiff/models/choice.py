"""Choose a model stack by its name, or by its three parts, and load it as torch modules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from refdiff.contracts.inspection import MINIATURE_NAME, MINIATURES
from refdiff.contracts.manifest import MANIFEST_NAME
from refdiff.contracts.optional import require_export
from refdiff.contracts.progress import Progress, silent
from refdiff.errors import InputError
from refdiff.models.presets import PRESETS

if TYPE_CHECKING:
    from refdiff.contracts.stack import ModelStack
    from refdiff.models.diffusion import TapPaths

MODELS = (*MINIATURES, *PRESETS)
"""Names of stacks."""

TAPS = ("all", "down")

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
    vae: str | None = None
    """In place of the diffusion model's own."""
    sam: str | None = None
    sam_encoder: str | None = None
    """An ONNX file with an image encoder for SAM's decoder."""
    clip: str | None = None
    size: int | None = None
    """Side in px of the image that Stable Diffusion encodes; None: `DEFAULT_SIZE`, or the miniature's."""
    taps: str = "all"
    """Where the attention is read: "all" or "down" (`refdiff.models.diffusion.taps`)."""
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
        """True for the miniatures, which are part of the package."""
        return self.name in MINIATURES

    @property
    def title(self) -> str:
        """The stack's name in the manifest: the model's, with "-custom" if a part was replaced."""
        return f"{self.name}-custom" if any(self._replaced()) else self.name

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
        if self.taps not in TAPS:
            raise InputError(f"unknown --taps {self.taps!r}; choose one of: {', '.join(TAPS)}")
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
        of_checkpoints = (self.sam_encoder, self.prediction, self.clip_activation, self.diffusion_weights)
        if self.random_weights and any((*of_checkpoints, self.checkpoints)):
            raise InputError(
                "--random-weights reads no checkpoint: leave out --checkpoints, --prediction and the like"
            )

    def _replaced(self) -> tuple[str | None, ...]:
        return self.diffusion, self.vae, self.sam, self.sam_encoder, self.clip

    def _given(self) -> list[str]:
        """Return the options that choose or change a part."""
        options = {
            "--diffusion": self.diffusion,
            "--vae": self.vae,
            "--sam": self.sam,
            "--sam-encoder": self.sam_encoder,
            "--clip": self.clip,
            "--size": self.size,
            "--taps": None if self.taps == "all" else self.taps,
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
        return load_miniature(purpose, choice.name)
    preset, size = PRESETS[choice.name], DEFAULT_SIZE if choice.size is None else choice.size
    with require_export(purpose):
        from refdiff.models.stacks import make_stack, random_stack
    if choice.random_weights:
        return random_stack(
            choice.title,
            diffusion=choice.diffusion or preset.diffusion.architecture,
            sam=choice.sam or preset.sam.architecture,
            clip=choice.clip or preset.clip.architecture,
            vae=choice.vae or (preset.vae.architecture if preset.vae else None),
            image_size=size,
            taps=cast("TapPaths", choice.taps),
            seed=choice.seed or 0,
        )
    with require_export(purpose):
        from refdiff.models.clip import load_clip
        from refdiff.models.diffusion import check_unet_set, load_diffusion
        from refdiff.models.hub.download import resolve
        from refdiff.models.sam import load_sam
    own_sets = preset.diffusion.has_both and not choice.diffusion
    unet_set = check_unet_set(choice.diffusion_weights) or ("non-ema" if own_sets else None)
    parts = {
        "diffusion": choice.diffusion or preset.diffusion.repo,
        "vae": choice.vae or (preset.vae.repo if preset.vae else None),
        "sam": choice.sam or preset.sam.repo,
        "sam_encoder": choice.sam_encoder,
        "clip": choice.clip or preset.clip.repo,
    }
    paths = {
        part: resolve(
            name,
            checkpoints=choice.checkpoints,
            offline=choice.offline,
            non_ema=part == "diffusion" and unet_set == "non-ema",
            progress=progress,
        )
        for part, name in parts.items()
        if name is not None
    }
    diffusion = load_diffusion(
        paths["diffusion"],
        image_size=size,
        prediction=choice.prediction,
        unet_set=unet_set,
        vae=paths.get("vae"),
        taps=cast("TapPaths", choice.taps),
    )
    activation = choice.clip_activation or (None if choice.clip else preset.clip.activation)
    return make_stack(
        choice.title,
        diffusion,
        load_sam(paths["sam"], paths.get("sam_encoder")),
        load_clip(paths["clip"], activation=activation),
    )


def load_miniature(purpose: str, name: str = MINIATURE_NAME) -> ModelStack:
    """Load the torch modules of a miniature, one of `MINIATURES`.

    Raises:
        MissingDependencyError: a package of the extra `export` is not installed.
    """
    with require_export(purpose):
        from refdiff.miniature import stack
    return stack.load_miniature(name)
