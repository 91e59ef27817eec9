"""Deterministic table-top scenes with exact masks, and phrases that refer to their objects."""

from refdiff.miniature.scenes.phrases import LEXICON, ReferringPhrase, refer
from refdiff.miniature.scenes.scene import HELD_OUT_FROM, RenderedScene, SceneObject, render_scene

__all__ = [
    "HELD_OUT_FROM",
    "LEXICON",
    "ReferringPhrase",
    "RenderedScene",
    "SceneObject",
    "refer",
    "render_scene",
]
