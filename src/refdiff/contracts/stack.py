"""A torch model stack: the input of the exporter and of the reference.

Its five modules are loaded when they are first used and can be released afterwards, so that a full-size stack
is never in memory as a whole. The torch types are imported for type checkers only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from refdiff.contracts.spec import ModelSpec

if TYPE_CHECKING:
    import open_clip
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from segment_anything.modeling import Sam
    from transformers import CLIPTextModel

COMPONENTS = ("text_encoder", "vae", "unet", "sam", "clip")
"""The modules of a stack."""

Loader = Callable[[], Any]
"""Builds one module and loads its weights: in eval mode, float32, on the CPU, without gradients."""


class ModelStack:
    """The original modules, and their sizes.

    Args:
        spec: the sizes.
        tokenizer_json: CLIP's byte-pair encoding as the `tokenizers` library's JSON; the same for both text
            encoders.
        sources: component -> sha256 of the weights it is loaded from, or "random, seed N".
        loaders: component -> its loader, which is called again after a `release`.
        random_seed: of random weights; None for a trained model.
    """

    def __init__(
        self,
        *,
        spec: ModelSpec,
        tokenizer_json: str,
        sources: Mapping[str, str],
        loaders: Mapping[str, Loader],
        random_seed: int | None = None,
    ) -> None:
        self.spec = spec
        self.tokenizer_json = tokenizer_json
        self.sources = MappingProxyType(dict(sources))
        self.random_seed = random_seed
        self._loaders = dict(loaders)
        self._loaded: dict[str, Any] = {}

    @classmethod
    def of(
        cls, *, spec: ModelSpec, tokenizer_json: str, sources: Mapping[str, str], modules: Mapping[str, Any]
    ) -> ModelStack:
        """Return a stack of modules that are in memory and stay there."""
        loaders = {name: _returning(module) for name, module in modules.items()}
        return cls(spec=spec, tokenizer_json=tokenizer_json, sources=sources, loaders=loaders)

    @property
    def text_encoder(self) -> CLIPTextModel:
        """The diffusion model's text encoder."""
        return self._module("text_encoder")  # type: ignore[no-any-return]

    @property
    def vae(self) -> AutoencoderKL | AutoencoderTiny:
        """The diffusion model's autoencoder; its decoder may be missing."""
        return self._module("vae")

    @property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser."""
        return self._module("unet")

    @property
    def sam(self) -> Sam:
        """Segment Anything."""
        return self._module("sam")

    @property
    def clip(self) -> open_clip.CLIP:
        """CLIP, both towers."""
        return self._module("clip")

    def release(self, *components: str) -> None:
        """Drop modules; one that is referenced elsewhere stays in memory."""
        for name in components:
            self._loaded.pop(name, None)

    def _module(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = self._loaders[name]()
        return self._loaded[name]


def _returning(module: Any) -> Loader:
    return lambda: module
