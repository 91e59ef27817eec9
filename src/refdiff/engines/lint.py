"""`lint`: which operators of a bundle TensorRT's parser refuses, and which are risky; nothing is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.progress import Progress, silent
from refdiff.engines.build import check_size, choose, chosen_graphs
from refdiff.engines.trt.attention_blocks import AttentionBlock, attention_blocks
from refdiff.engines.trt.build_log import make_log
from refdiff.engines.trt.device import find_device
from refdiff.engines.trt.lint import LintFinding, findings
from refdiff.engines.trt.parsing import Refusal, parse


@dataclass(frozen=True, kw_only=True)
class LintedGraph:
    """What the parser said of one graph."""

    graph: str
    precision: str
    layers: int
    """Of the network, as far as it was parsed."""
    refusals: tuple[Refusal, ...]
    findings: tuple[LintFinding, ...]
    attention: tuple[AttentionBlock, ...]
    """Both empty where the graph was refused: half a network says nothing."""


@dataclass(frozen=True, kw_only=True)
class LintReport:
    """What `lint` found."""

    bundle: Path
    flavour: str
    version: str
    reason: str
    """Why this flavour."""
    graphs: tuple[LintedGraph, ...]

    @property
    def passed(self) -> bool:
        """Whether the parser takes every graph; risks are told and do not fail."""
        return not any(graph.refusals for graph in self.graphs)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {**dataclasses.asdict(self), "bundle": str(self.bundle), "passed": self.passed}


def lint(
    bundle: Path | str,
    *,
    flavour: str = "auto",
    graphs: Sequence[str] = (),
    size: int | None = None,
    progress: Progress | None = None,
) -> LintReport:
    """Parse graphs with TensorRT's own parser; no GPU is needed with TensorRT-RTX.

    Args:
        bundle: its folder, or "mini".
        flavour: "tensorrt", "tensorrt-rtx", or "auto".
        graphs: which; none means all.
        size: as in `build`.
        progress: told one line for each graph.

    Raises:
        BundleError: the bundle is missing or damaged.
        InputError: an unknown name, or another size than the bundle's.
        MissingDependencyError: no TensorRT is installed.
        EngineError: TensorRT cannot start.
    """
    tell, opened = progress or silent, find_bundle(bundle)
    names = chosen_graphs(opened, graphs)
    check_size(opened, size)
    trt, reason = choose(flavour, find_device())
    linted = []
    for name in names:
        tell(f"{name}: parsing")
        parsed = parse(trt, opened.graph_path(name), make_log(trt))
        linted.append(
            LintedGraph(
                graph=name,
                precision=opened.manifest.graphs[name].precision,
                layers=parsed.network.num_layers,
                refusals=parsed.refusals,
                findings=() if parsed.refusals else findings(trt, parsed.network),
                attention=() if parsed.refusals else attention_blocks(parsed.network),
            )
        )
    return LintReport(
        bundle=opened.path, flavour=trt.name, version=trt.version, reason=reason, graphs=tuple(linted)
    )
