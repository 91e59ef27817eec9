"""Sessions that run the torch wrappers: the numpy pipeline on the original modules, without any ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from refdiff.contracts.feeds import check_feeds, wanted_outputs
from refdiff.contracts.graphs import GraphSpec, graph_contract
from refdiff.contracts.session import Array, Session
from refdiff.errors import EngineError, InputError
from refdiff.export.wrappers import wrap

if TYPE_CHECKING:
    from torch import nn

    from refdiff.contracts.stack import ModelStack


class TorchSession:
    """One graph as a torch module."""

    def __init__(self, graph: GraphSpec, module: nn.Module) -> None:
        self._graph = graph
        self._module: nn.Module | None = module

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._graph

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; see `refdiff.contracts.session.Session`."""
        check_feeds(self._graph, feeds)
        wanted = wanted_outputs(self._graph, outputs)
        if self._module is None:
            raise EngineError(f"{self._graph.name}: the session is closed; open it again")
        # A copy: torch shares memory with writable arrays only, and the caller keeps its own.
        tensors = [torch.tensor(feeds[name]) for name in self._graph.input_names]
        with torch.inference_mode():
            results = self._module(*tensors)
        if isinstance(results, torch.Tensor):
            results = (results,)
        named = dict(zip(self._graph.output_names, results, strict=True))
        return {name: named[name].numpy() for name in wanted}

    def close(self) -> None:
        """Let go of the module."""
        self._module = None


class TorchSessions:
    """Opens torch sessions of a stack, one per graph."""

    def __init__(self, stack: ModelStack) -> None:
        self._stack = stack
        self._contract = graph_contract(stack.spec)
        self._open: dict[str, Session] = {}

    def open(self, name: str) -> Session:
        """The session of graph `name`, opened on the first call and kept.

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
