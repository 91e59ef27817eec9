"""The export's stages, one per model: each is loaded, rehearsed, written and let go before the next."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One model's graphs, by the component that has to be in memory to write them."""

    name: str
    graphs: tuple[tuple[str, tuple[str, ...]], ...]
    """Component -> its graphs."""

    @property
    def graph_names(self) -> tuple[str, ...]:
        """All graphs of the stage."""
        return tuple(name for _, names in self.graphs for name in names)


STAGES = (
    Stage("sam", (("sam", ("sam_encoder", "sam_decoder", "sam_masks")),)),
    Stage(
        "diffusion",
        (
            ("text_encoder", ("sd_text",)),
            ("vae", ("vae_encoder",)),
            ("unet", ("unet", "unet_taps")),
        ),
    ),
    Stage("clip", (("clip", ("clip_text", "clip_image")),)),
)
"""SAM comes first, because CLIP looks at its candidates."""
