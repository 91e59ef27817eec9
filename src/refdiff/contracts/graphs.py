"""The graph contract: names, dtypes and shapes of every graph, defined once.

The exporter checks its files against it, sessions check their feeds, and fakes and docs are made from it. A
dimension is an int (static) or a name (dynamic).

    b = batch   p = patches   c = class tokens   t = c + p
    n = decoded prompts   q = tokens of a prompt   k = prompts whose masks are drawn
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from refdiff.contracts.spec import DiffusionSpec, ModelSpec

Dimension = int | str

POINTS_PER_BATCH = 64
"""Points of one call of SAM's decoder: `points_per_batch` of its automatic mode."""

POINT_TOKENS = 2
"""Tokens of a prompt that is one point: the point, and SAM's padding."""

PROMPTS_PER_BATCH = 16
"""Most other prompts of one call of SAM's decoder: 16 of `PROMPT_TOKENS` need less memory than 64 points."""

PROMPT_TOKENS = 16
"""Most tokens of a prompt: a box and 14 points, or 15 points and SAM's padding."""

POINTS_PER_DRAWING = 16
"""Most prompts of one call of `sam_masks`: 0.5 GB of activations at full size, instead of 2 GB for all 64."""

MASKS_PER_POINT = 3
"""SAM's multimask outputs per prompt."""

TAP_OUTPUTS = ("taps", "coarse_taps", "self_taps")
"""The UNet's outputs of attention logits: head means before the softmax (METHOD §4.7)."""

BLOCKED = -1.0e4
"""Additive attention mask value for a blocked pair: finite, and exact in half precision (onnxscript#2479)."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output."""

    name: str
    dtype: str
    """numpy's name of the dtype."""
    shape: tuple[Dimension, ...]


@dataclass(frozen=True)
class GraphSpec:
    """The inputs and outputs of one graph."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(tensor.name for tensor in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(tensor.name for tensor in self.outputs)


GRAPHS = (
    "sd_text",
    "vae_encoder",
    "unet",
    "unet_taps",
    "sam_encoder",
    "sam_decoder",
    "sam_masks",
    "clip_text",
    "clip_image",
)
"""All graphs of a bundle, in pipeline order."""


def graph_contract(spec: ModelSpec) -> Mapping[str, GraphSpec]:
    """Return the graphs of a model of this size, by name, in the order of `GRAPHS`."""
    diffusion, sam, clip, length = spec.diffusion, spec.sam, spec.clip, spec.context_length
    latent = ("b", diffusion.latent_channels, diffusion.latent_size, diffusion.latent_size)
    taps = _taps(diffusion, length)
    unet_inputs = (
        _f32("latent", *latent),
        _f32("timestep", "b"),
        _f32("context", "b", length, diffusion.context_width),
    )
    image_side, embedding = diffusion.image_size, (1, sam.embed_channels, sam.embed_size, sam.embed_size)
    patch_values = 3 * clip.patch_size**2
    graphs = (
        GraphSpec(
            "sd_text", (_i32("ids", "b", length),), (_f32("context", "b", length, diffusion.context_width),)
        ),
        GraphSpec(
            "vae_encoder",
            (_f32("image", 1, 3, image_side, image_side),),
            (_f32("moments", 1, 2 * latent[1], *latent[2:]),),
        ),
        GraphSpec("unet", unet_inputs, (_f32("eps", *latent), *taps)),
        GraphSpec("unet_taps", unet_inputs, taps),
        GraphSpec(
            "sam_encoder",
            (_f32("image", 1, 3, sam.image_size, sam.image_size),),
            (_f32("embedding", *embedding),),
        ),
        GraphSpec(
            "sam_decoder",
            (_f32("embedding", *embedding), _f32("prompts", "n", "q", sam.embed_channels)),
            (
                _f32("iou", "n", MASKS_PER_POINT),
                _f32("tokens", "n", MASKS_PER_POINT, sam.embed_channels),
                _f32("features", "n", sam.embed_size**2, sam.embed_channels),
            ),
        ),
        GraphSpec(
            "sam_masks",
            (
                _f32("features", "n", sam.embed_size**2, sam.embed_channels),
                _f32("tokens", "n", MASKS_PER_POINT, sam.embed_channels),
                _i32("chosen", "k"),
            ),
            (_f32("low_res", "k", MASKS_PER_POINT, sam.low_res_size, sam.low_res_size),),
        ),
        GraphSpec(
            "clip_text", (_i32("ids", "b", length), _i32("end", "b")), (_f32("vector", "b", clip.embed_dim),)
        ),
        GraphSpec(
            "clip_image",
            (
                _f32("patches", "b", "p", patch_values),
                _f32("positions", "b", "p", clip.width),
                _f32("slots", "b", "c", 1),
                _f32("mask", "b", "t", "t"),
            ),
            (_f32("vectors", "b", "c", clip.embed_dim),),
        ),
    )
    return MappingProxyType({graph.name: graph for graph in graphs})


def _taps(diffusion: DiffusionSpec, length: int) -> tuple[TensorSpec, ...]:
    """Return the UNet's attention outputs: `taps`, and those that the spec's `maps` name."""
    layers, cells = len(diffusion.tapped_layers), diffusion.tap_size**2
    more = {
        "coarse": _f32("coarse_taps", "b", 1, diffusion.coarse_size**2, length),
        "self": _f32("self_taps", "b", layers, cells, cells),
    }
    return _f32("taps", "b", layers, cells, length), *(more[name] for name in diffusion.maps)


def _f32(name: str, *shape: Dimension) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def _i32(name: str, *shape: Dimension) -> TensorSpec:
    return TensorSpec(name, "int32", shape)
