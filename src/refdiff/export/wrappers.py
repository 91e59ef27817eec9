"""Torch modules with the inputs and outputs of the contract's graphs, and sessions that run them.

With these sessions the numpy pipeline runs on the original modules, without ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from refdiff.contracts.graphs import GRAPHS, GraphSpec, graph_contract
from refdiff.contracts.session import Array, Feed, Session, Timings, check_feeds, to_host, wanted_outputs
from refdiff.errors import EngineError, InputError
from refdiff.export.clip_graphs import ClipImage, ClipText
from refdiff.export.diffusion_graphs import SdText, Unet, UnetTaps, VaeEncoder
from refdiff.export.sam_graphs import SamDecoder, SamEncoder, SamMasks

if TYPE_CHECKING:
    from torch import nn

    from refdiff.contracts.session import Float
    from refdiff.contracts.stack import ModelStack


_BUILDERS: dict[str, Callable[[ModelStack], nn.Module]] = {
    "sd_text": lambda stack: SdText(stack.text_encoder),
    "vae_encoder": lambda stack: VaeEncoder(stack.vae, stack.spec.diffusion.scaling_factor),
    "unet": lambda stack: Unet(stack.unet, stack.spec.diffusion),
    "unet_taps": lambda stack: UnetTaps(stack.unet, stack.spec.diffusion),
    "sam_encoder": lambda stack: SamEncoder(stack.sam),
    "sam_decoder": lambda stack: SamDecoder(stack.sam),
    "sam_masks": lambda stack: SamMasks(stack.sam),
    "clip_text": lambda stack: ClipText(stack.clip),
    "clip_image": lambda stack: ClipImage(stack.clip),
}


def wrap(stack: ModelStack, name: str) -> nn.Module:
    """Return the module of graph `name`, which shares the stack's weights, in eval mode.

    Raises:
        InputError: no such graph, or the stack's module cannot be exported.
    """
    if name not in _BUILDERS:
        raise InputError(f"unknown graph {name!r}; choose one of: {', '.join(GRAPHS)}")
    return _BUILDERS[name](stack).eval()


def clip_positions(stack: ModelStack) -> Float:
    """Return [grid*grid, width]: CLIP's patch positions, without the class token's row.

    Raises:
        InputError: the table does not have the size in the spec.
    """
    table: Float = stack.clip.visual.positional_embedding.detach()[1:].cpu().numpy().astype(np.float32)
    clip = stack.spec.clip
    if table.shape != (clip.grid**2, clip.width):
        raise InputError(f"CLIP's positions are {table.shape}, the spec says {(clip.grid**2, clip.width)}")
    return table


class TorchSession:
    """A session that runs one graph as a torch module."""

    def __init__(self, graph: GraphSpec, module: nn.Module) -> None:
        self._graph = graph
        self._module: nn.Module | None = module

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._graph

    @property
    def max_batch(self) -> int | None:
        """None: a batch may have any size."""
        return None

    def run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        *,
        keep_on_device: bool = False,  # noqa: ARG002 - this back-end returns host arrays
    ) -> dict[str, Array]:
        """Run once; see `refdiff.contracts.session.Session`."""
        check_feeds(self._graph, feeds)
        wanted = wanted_outputs(self._graph, outputs)
        if self._module is None:
            raise EngineError(f"{self._graph.name}: the session is closed; open it again")
        # A copy: torch shares memory only with writable arrays, and the caller keeps the original.
        tensors = [torch.tensor(to_host(feeds[name])) for name in self._graph.input_names]
        with torch.inference_mode():
            results = self._module(*tensors)
        if isinstance(results, torch.Tensor):
            results = (results,)
        named = dict(zip(self._graph.output_names, results, strict=True))
        return {name: named[name].numpy() for name in wanted}

    def timings(self) -> Timings:
        """Return empty timings: nothing is measured here."""
        return Timings()

    def close(self) -> None:
        """Release the module."""
        self._module = None


class TorchSessions:
    """Opens torch sessions of a stack, one per graph."""

    def __init__(self, stack: ModelStack) -> None:
        self._stack = stack
        self._contract = graph_contract(stack.spec)
        self._open: dict[str, Session] = {}

    def open(self, name: str) -> Session:
        """Return the session of graph `name`, which is opened on the first call.

        Raises:
            InputError: no such graph.
        """
        if name not in self._contract:
            raise InputError(f"unknown graph {name!r}; choose one of: {', '.join(self._contract)}")
        if name not in self._open:
            self._open[name] = TorchSession(self._contract[name], wrap(self._stack, name))
        return self._open[name]

    def close(self) -> None:
        """Close every session that was opened."""
        for session in self._open.values():
            session.close()
        self._open.clear()
