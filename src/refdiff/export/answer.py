"""Record a bundle's golden answer while it is written.

The graphs run on the CPU, one at a time in memory: a full-size stack is exported on machines that do not hold
two of its models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from refdiff.contracts.golden_answer import GoldenAnswer
from refdiff.contracts.graphs import GraphSpec, graph_contract
from refdiff.contracts.prompt_vectors import PromptVectors
from refdiff.contracts.session import Array, Feed, Float, Timings, check_feeds, feeds_to_host, wanted_outputs
from refdiff.contracts.spec import ModelSpec
from refdiff.engines.check_session import CheckSession
from refdiff.miniature.scenes import render_scene
from refdiff.runtime.golden_answer import give_answer

_SCENE, _PHRASE = 2_000_101, "the orange plate behind the purple plate"
"""Seed and phrase. The miniature's best candidate scores twice as much as its second, so fewer bits give the
same answer."""


def record_answer(
    folder: Path, spec: ModelSpec, *, tokenizer_json: str, positions: Float, prompts: PromptVectors
) -> GoldenAnswer:
    """Answer one phrase on one rendered scene with the graphs in a folder.

    Raises:
        InputError: the tokenizer or a table does not fit the spec.
        EngineError: a graph failed.
    """
    recorded, _ = give_answer(
        _OneAtATime(folder, spec),
        spec,
        tokenizer_json=tokenizer_json,
        positions=positions,
        prompts=prompts,
        image=np.asarray(render_scene(_SCENE).image),
        phrase=_PHRASE,
    )
    return recorded


class _OneAtATime:
    """Opens graphs in a folder; only the one that ran last is in memory."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._folder = folder
        self._contract = graph_contract(spec)
        self._loaded: tuple[str, CheckSession] | None = None

    def open(self, name: str) -> _Session:
        """Return the session of graph `name`, which is loaded when it runs."""
        return _Session(self, self._contract[name])

    def close(self) -> None:
        """Free the graph that ran last."""
        self._loaded = None

    def load(self, name: str) -> CheckSession:
        """Load a graph in the place of the one before."""
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            self._loaded = (name, CheckSession(self._folder / f"{name}.onnx"))
        return self._loaded[1]


class _Session:
    """One graph; see `refdiff.contracts.session.Session`."""

    max_batch: int | None = None

    def __init__(self, owner: _OneAtATime, graph: GraphSpec) -> None:
        self._owner = owner
        self.graph = graph

    def run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        *,
        keep_on_device: bool = False,  # noqa: ARG002 - the graphs run on the host
    ) -> dict[str, Array]:
        check_feeds(self.graph, feeds)
        wanted = wanted_outputs(self.graph, outputs)
        return self._owner.load(self.graph.name).run(feeds_to_host(feeds), wanted)

    def timings(self) -> Timings:
        return Timings()

    def close(self) -> None:
        """Do nothing: the owner holds the graph."""
