"""Deterministic table-top scenes with exact masks, and phrases that single their objects out."""

from refdiff.miniature.scenes.phrases import LEXICON, Referral, refer
from refdiff.miniature.scenes.scene import RenderedScene, SceneObject, render_scene

__all__ = ["LEXICON", "Referral", "RenderedScene", "SceneObject", "refer", "render_scene"]
