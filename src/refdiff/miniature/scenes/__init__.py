"""Deterministic table-top scenes with exact masks, and phrases that single their objects out."""

from refdiff.miniature.scenes.phrases import LEXICON, Referral, refer
from refdiff.miniature.scenes.scene import HELD_OUT_FROM, RenderedScene, SceneObject, render_scene

__all__ = ["HELD_OUT_FROM", "LEXICON", "Referral", "RenderedScene", "SceneObject", "refer", "render_scene"]
