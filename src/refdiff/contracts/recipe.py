"""A precision recipe: how many bits each tensor of a bundle gets, and why (docs/precision.md).

A small JSON file that the toolkit writes and reads, and that may be edited by hand:

    {"format": 1, "model": "refdiff-mini", "sources": {...},
     "graphs": {"unet": {"half": "fp16",
                         "fp32": [{"nodes": ["*/Softmax*"], "because": "...", "origin": "rule"}],
                         "half_weights": [],
                         "quantised": {"type": "int8", "nodes": [...], "ranges": {"tensor": 3.1}, ...},
                         "left": [{"nodes": [...], "because": "...", "origin": "sensitivity"}]}}}

Nodes are named as the exporter named them, after their modules; `*` stands for any part of a name.
`unet_taps` has no entry: it is a part of `unet`. In the file, `quantized` is spelled `quantised` and
`excluded` is `left`, as in the first release of the format.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from refdiff.contracts.json_fields import (
    as_list,
    as_number,
    as_table,
    as_text,
    as_whole,
    missing_or_wrong,
    read_json,
)
from refdiff.errors import InputError

RECIPE_FORMAT = 1

RECIPE_NAME = "recipe.json"
"""File name, inside a bundle, of the recipe that its graphs were converted by."""

Half = Literal["fp16", "bf16"]
HALVES: tuple[str, ...] = get_args(Half)
QuantizedType = Literal["int8", "fp8"]
QUANTIZED: tuple[str, ...] = get_args(QuantizedType)
Origin = Literal["rule", "audit", "bisect", "sensitivity", "gate", "hand"]
ORIGINS: tuple[str, ...] = get_args(Origin)
"""Origin of a rule: built in, a measurement of that name, the gate that refused, or edited by hand."""


_NUMBER_LIST = re.compile(r"\[[\s\d,-]+\]")
_FILE_NAMES = {"quantized": "quantised", "excluded": "left"}
"""Field -> its name in the file, where it differs."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Nodes that are treated alike, and the reason."""

    nodes: tuple[str, ...]
    """Names, or patterns with `*`."""
    because: str
    origin: Origin = "hand"


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The nodes of a graph whose weights and data input are held in eight bits."""

    type: QuantizedType
    nodes: tuple[str, ...]
    """Names of matrix products and convolutions with constant weights, or patterns with `*`."""
    ranges: Mapping[str, float]
    """Tensor -> largest magnitude it represents. The data input of every node has one, except of embeddings
    and of `weights_alone`."""
    method: str
    """Method that found the ranges: "minmax", "percentile" or "entropy"."""
    smoothing: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensor -> exponents of two that SmoothQuant divides its channels by, where it was used."""
    weights_alone: tuple[Rule, ...] = ()
    """Those of `nodes` that have only their weights in eight bits, and their data input in half precision."""


@dataclass(frozen=True, kw_only=True)
class GraphRecipe:
    """Precision of one graph."""

    half: Half
    fp32: tuple[Rule, ...] = ()
    """Nodes that stay in single precision; nodes enclosed by them join them."""
    half_weights: tuple[Rule, ...] = ()
    """Nodes that also compute in single precision, but on weights stored in half precision."""
    quantized: Quantized | None = None
    excluded: tuple[Rule, ...] = ()
    """Nodes that could be quantized and are not."""

    @property
    def single(self) -> tuple[Rule, ...]:
        """All rules of nodes that compute in single precision."""
        return (*self.fp32, *self.half_weights)

    @property
    def precision(self) -> str:
        """Name of the precision in the manifest: the type with the fewest bits."""
        return self.half if self.quantized is None else self.quantized.type


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Recipes of all graphs of a bundle that are not kept in fp32."""

    model: str
    sources: Mapping[str, str]
    """Component -> sha256 of the weights that the recipe was made for."""
    graphs: Mapping[str, GraphRecipe]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        document = {"format": RECIPE_FORMAT, **dataclasses.asdict(self)}
        document["graphs"] = {
            name: {_FILE_NAMES.get(key, key): value for key, value in graph.items()}
            for name, graph in document["graphs"].items()
        }
        return document

    @classmethod
    def from_json(cls, document: object, *, where: str) -> Recipe:
        """Read what `to_json` wrote, possibly edited by hand.

        Args:
            document: the decoded JSON.
            where: the file, for messages.

        Raises:
            InputError: not a recipe, of another format, or with an invalid value.
        """
        if not isinstance(document, dict):
            raise InputError(f"{where}: expected a JSON object, got {type(document).__name__}")
        fields = dict(document)
        if (found := fields.pop("format", None)) != RECIPE_FORMAT or isinstance(found, bool):
            raise InputError(f"{where}: got format {document.get('format')!r}, expected {RECIPE_FORMAT}")
        try:
            graphs = {
                name: _graph(as_table(entry, name))
                for name, entry in as_table(fields.pop("graphs"), "graphs").items()
            }
            model = as_text(fields.pop("model"), "model")
            sources = as_table(fields.pop("sources"), "sources")
            digests = {name: as_text(digest, f"sources {name}") for name, digest in sources.items()}
            return cls(model=model, sources=digests, graphs=graphs, **fields)
        except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise InputError(
                f"{where} is not a precision recipe ({missing_or_wrong(error)}); "
                "write one with: refdiff audit"
            ) from error

    def to_text(self) -> str:
        """Return the file's content: one line for each name, lists of numbers on one line."""
        text = json.dumps(self.to_json(), indent=1)
        return _NUMBER_LIST.sub(lambda found: "".join(found[0].split()), text) + "\n"


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        InputError: it cannot be read, or is not a recipe.
    """
    if not path.exists():
        raise InputError(f"there is no recipe {path}; refdiff audit makes one")
    document = read_json(path, InputError, "write a recipe with: refdiff audit")
    return Recipe.from_json(document, where=str(path))


def match_rules(rules: Iterable[Rule], known: Collection[str], *, where: str) -> frozenset[str]:
    """Return all nodes that rules name.

    Args:
        rules: of one graph.
        known: the graph's node names.
        where: the graph, for messages.

    Raises:
        InputError: a name or pattern that matches no node.
    """
    return match_nodes((pattern for rule in rules for pattern in rule.nodes), known, where=where)


def half_weight_nodes(recipe: GraphRecipe, known: Collection[str], *, where: str) -> frozenset[str]:
    """Return the nodes that compute in single precision on half-precision weights; see `match_rules`."""
    return match_rules(recipe.half_weights, known, where=where) - match_rules(recipe.fp32, known, where=where)


def match_nodes(patterns: Iterable[str], known: Collection[str], *, where: str) -> frozenset[str]:
    """Return all names that patterns match; see `match_rules`."""
    found = set[str]()
    for pattern in patterns:
        shape = re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)
        names = [pattern] if pattern in known else [name for name in known if shape.fullmatch(name)]
        if not names:
            raise InputError(
                f"{where}: the recipe names {pattern!r}, but no node has that name; correct the recipe"
            )
        found.update(names)
    return frozenset(found)


def _graph(entry: Mapping[str, Any]) -> GraphRecipe:
    fields = dict(entry)
    _check_choice(fields["half"], HALVES, "half")
    quantized = fields.pop("quantised", None)
    return GraphRecipe(
        fp32=_rules(fields.pop("fp32", ()), "fp32"),
        half_weights=_rules(fields.pop("half_weights", ()), "half_weights"),
        quantized=None if quantized is None else _quantized(as_table(quantized, "quantised")),
        excluded=_rules(fields.pop("left", ()), "left"),
        **fields,
    )


def _rule(entry: Mapping[str, Any]) -> Rule:
    fields = {**entry, "nodes": _names(entry["nodes"]), "because": as_text(entry["because"], "because")}
    _check_choice(fields.get("origin", "hand"), ORIGINS, "origin")
    return Rule(**fields)


def _quantized(entry: Mapping[str, Any]) -> Quantized:
    fields = dict(entry)
    _check_choice(fields["type"], QUANTIZED, "type")
    fields["nodes"] = _names(fields["nodes"])
    fields["method"] = as_text(fields["method"], "method")
    ranges = as_table(fields["ranges"], "ranges")
    fields["ranges"] = {name: _range(value, name) for name, value in ranges.items()}
    fields["smoothing"] = {
        name: tuple(_exponent(value, f"smoothing of {name}") for value in as_list(values, name))
        for name, values in as_table(fields.get("smoothing", {}), "smoothing").items()
    }
    fields["weights_alone"] = _rules(fields.get("weights_alone", ()), "weights_alone")
    return Quantized(**fields)


def _rules(value: object, name: str) -> tuple[Rule, ...]:
    return tuple(_rule(as_table(rule, name)) for rule in as_list(value, name))


def _names(entry: object) -> tuple[str, ...]:
    return tuple(as_text(name, "nodes") for name in as_list(entry, "nodes"))


def _range(value: object, name: str) -> float:
    number = as_number(value, f"the range of {name}")
    if not 0.0 <= number < math.inf:
        raise ValueError(f"the range of {name} is {value!r}, expected 0 or more, and finite")
    return number


def _exponent(value: object, name: str) -> int:
    exponent = as_whole(value, name)
    if abs(exponent) > _LARGEST_EXPONENT:
        raise ValueError(f"{name} is {exponent}, expected -{_LARGEST_EXPONENT} to {_LARGEST_EXPONENT}")
    return exponent


_LARGEST_EXPONENT = 126
"""Powers of two beyond it are no float32."""


def _check_choice(value: object, known: tuple[str, ...], name: str) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
