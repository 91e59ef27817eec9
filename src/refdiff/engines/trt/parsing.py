"""Parse an ONNX file into a strongly typed TensorRT network, or report node, operator, reason and cure.

The parser gets the file's path, not its bytes, so it maps the weights next to it and copies none (measured:
parsing 512 MB of weights takes 1 MB of memory). The parser owns those maps, so it must live as long as its
network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.contracts.optional import require_export
from refdiff.engines.trt.flavour import Flavour, member_name
from refdiff.engines.trt.monitor import BuildLog, last_error
from refdiff.errors import EngineError

_OPERATOR_CURES = {
    "NonZero": "its output's size depends on values; export again with refdiff, whose graphs hold none",
    "OneHot": "export again with refdiff, whose decoder holds none",
    "If": "export again with refdiff, whose graphs have no branches",
    "Loop": "export again with refdiff, whose graphs have no loops",
}
"""Operator -> cure."""

_CURE = "export the bundle again; in a graph changed by hand, replace the operator"

_TEXT_CURES = {
    "must have same input types": "the graph mixes types; convert the fp32 bundle again with: refdiff export",
    "import initializer": "its weights file is missing or damaged; copy or export the bundle again",
    "Failed to parse the ONNX model": "it is no ONNX file; copy or export the bundle again",
    "cannot be found": "the file is missing; copy or export the bundle again",
}
"""Text that a reason contains -> cure."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One complaint of the parser."""

    node: str
    """Name that the exporter gave it; empty if the complaint is not about a node."""
    operator: str
    reason: str
    cure: str

    def __str__(self) -> str:
        """Return one line."""
        where = f"node {self.node} ({self.operator}): " if self.node or self.operator else ""
        return f"{where}{self.reason}; {self.cure}"


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A parsed file; keeps everything alive that the network needs."""

    builder: Any
    network: Any
    parser: Any
    refusals: tuple[Refusal, ...]


def parse(flavour: Flavour, path: Path, log: BuildLog, *, attention_op: bool = False) -> Parsed:
    """Parse an ONNX file.

    Args:
        flavour: the TensorRT to parse with.
        path: the file, its weights in the same folder.
        log: receives every message.
        attention_op: rewrite attentions in half precision as `Attention` first (`passes.attention_operator`).

    Returns:
        The network; with refusals it is incomplete.

    Raises:
        EngineError: TensorRT cannot start, or has no strongly typed networks.
        InputError: attentions cannot be rewritten in this graph.
        MissingDependencyError: onnx_ir is not installed, and attentions are to be rewritten.
    """
    rewritten = _with_attention_op(path) if attention_op else None
    try:
        builder = flavour.module.Builder(log)
    except Exception as error:  # TensorRT's binding raises its own kinds when its libraries cannot start
        raise EngineError(f"{flavour.title} cannot start: {last_error(log)}; fix the installation") from error
    network = builder.create_network(flavour.network_flags())
    parser = flavour.module.OnnxParser(network, log)
    # Of bytes, the weights lie next to the file of that name.
    accepted = parser.parse(rewritten, str(path)) if rewritten else parser.parse_from_file(str(path))
    refusals = () if accepted else tuple(_refusals(parser)) or (_unexplained(log),)
    return Parsed(builder=builder, network=network, parser=parser, refusals=refusals)


def _with_attention_op(path: Path) -> bytes:
    """Return a graph, serialized without its weights, whose attentions are rewritten."""
    with require_export("--attention-op"):
        from refdiff.passes.attention_operator import UseAttentionOperator
        from refdiff.passes.graph_files import load_typed, serialized
    return serialized(UseAttentionOperator()(load_typed(path)), path.parent)


def check_parsed(parsed: Parsed, flavour: Flavour, graph: str) -> None:
    """Raise if the parser refused anything.

    Raises:
        EngineError: names the first node it refused.
    """
    if parsed.refusals:
        raise EngineError(f"{flavour.title} refuses {graph}: {parsed.refusals[0]}")


def layer_kind(layer: Any) -> str:
    """Return TensorRT's name for what a layer does, such as "SOFTMAX"."""
    return member_name(layer.type)


def _refusals(parser: Any) -> Iterator[Refusal]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        reason = _reason(str(error.desc()))
        operator = _field(error, "node_operator")
        yield Refusal(
            node=_field(error, "node_name"),
            operator=operator,
            reason=reason,
            cure=_cure(operator, reason),
        )


def _unexplained(log: BuildLog) -> Refusal:
    reason = last_error(log)
    return Refusal(node="", operator="", reason=reason, cure=_cure("", reason))


def _field(error: Any, what: str) -> str:
    """Return a property of an error; empty if this version has none of that name."""
    return str(getattr(error, what)()) if hasattr(error, what) else ""


def _reason(description: str) -> str:
    """Return the description on one line, without the driver's complaints."""
    lines = [line for line in description.splitlines() if "catchCudaError" not in line]
    return " ".join(" ".join(lines).split())


def _cure(operator: str, reason: str) -> str:
    for sign, cure in _TEXT_CURES.items():
        if sign in reason:
            return cure
    return _OPERATOR_CURES.get(operator, _CURE)
