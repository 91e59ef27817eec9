"""A precision recipe: how many bits each tensor of a bundle gets, and why (DESIGN §5).

A small file that is written by the toolkit, read by people, corrected by hand and used again:

    {"format": 1, "model": "refdiff-mini", "sources": {...},
     "graphs": {"unet": {"half": "fp16",
                         "fp32": [{"nodes": ["*/Softmax*"], "because": "...", "origin": "rule"}],
                         "half_weights": [],
                         "quantised": {"type": "int8", "nodes": [...], "ranges": {"tensor": 3.1}, ...},
                         "left": [{"nodes": [...], "because": "...", "origin": "sensitivity"}]}}}

Nodes are named as the exporter named them, after their modules; `*` stands for any part of a name.
`unet_taps` has no entry of its own: it is a part of `unet`.
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
"""In a bundle: the recipe its graphs were made by."""

Half = Literal["fp16", "bf16"]
HALVES: tuple[str, ...] = get_args(Half)
QuantisedType = Literal["int8", "fp8"]
QUANTISED: tuple[str, ...] = get_args(QuantisedType)
Origin = Literal["rule", "audit", "bisect", "sensitivity", "gate", "hand"]
ORIGINS: tuple[str, ...] = get_args(Origin)
"""Who asked for it: the built-in rules, a measurement of that name, the gate that refused, or a person."""


_NUMBERS = re.compile(r"\[[\s\d,-]+\]")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Nodes that share a treatment, and the reason."""

    nodes: tuple[str, ...]
    """Names, or patterns with `*`."""
    because: str
    origin: Origin = "hand"


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """The nodes of a graph whose weights and data input are held in eight bits."""

    type: QuantisedType
    nodes: tuple[str, ...]
    """Names of products and convolutions with constant weights, or patterns with `*`."""
    ranges: Mapping[str, float]
    """Tensor -> largest magnitude it keeps; the data input of every node has one, but for embeddings and
    `weights_alone`."""
    method: str
    """How the ranges were found: "minmax", "percentile" or "entropy"."""
    smoothing: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensor -> powers of two that SmoothQuant divides its channels by, where it was used."""
    weights_alone: tuple[Rule, ...] = ()
    """Nodes of these whose weights alone are in eight bits, their data input in half precision."""


@dataclass(frozen=True, kw_only=True)
class GraphRecipe:
    """One graph."""

    half: Half
    fp32: tuple[Rule, ...] = ()
    """Nodes that stay in single precision; nodes caught between them join them."""
    half_weights: tuple[Rule, ...] = ()
    """Nodes that compute in single precision too, on weights that are stored in half precision."""
    quantised: Quantised | None = None
    left: tuple[Rule, ...] = ()
    """Nodes that could be quantised and are not."""

    @property
    def single(self) -> tuple[Rule, ...]:
        """Every rule of nodes that compute in single precision."""
        return (*self.fp32, *self.half_weights)

    @property
    def precision(self) -> str:
        """What the manifest calls it."""
        return self.half if self.quantised is None else self.quantised.type


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All graphs of a bundle that are not kept in fp32."""

    model: str
    sources: Mapping[str, str]
    """Component -> sha256 of the weights it was made for."""
    graphs: Mapping[str, GraphRecipe]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"format": RECIPE_FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, document: object, *, where: str) -> Recipe:
        """Read what `to_json` wrote, or a person.

        Raises:
            InputError: not a recipe, of another format, or a value that is none.
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
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise InputError(
                f"{where} is not a precision recipe ({missing_or_wrong(error)}); "
                "write one with: refdiff audit"
            ) from error

    def to_text(self) -> str:
        """The file's content: a line for each name, numbers side by side."""
        text = json.dumps(self.to_json(), indent=1)
        return _NUMBERS.sub(lambda found: "".join(found[0].split()), text) + "\n"


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        InputError: it cannot be read, or is not a recipe.
    """
    if not path.exists():
        raise InputError(f"there is no recipe {path}; refdiff audit makes one")
    document = read_json(path, InputError, "write a recipe with: refdiff audit")
    return Recipe.from_json(document, where=str(path))


def named(rules: Iterable[Rule], known: Collection[str], *, where: str) -> frozenset[str]:
    """All nodes that rules name.

    Args:
        rules: of one graph.
        known: the graph's node names.
        where: the graph, for messages.

    Raises:
        InputError: a name or pattern that is no node's.
    """
    return matching((pattern for rule in rules for pattern in rule.nodes), known, where=where)


def on_half_weights(recipe: GraphRecipe, known: Collection[str], *, where: str) -> frozenset[str]:
    """The nodes that compute in single precision on half-precision weights; see `named`."""
    return named(recipe.half_weights, known, where=where) - named(recipe.fp32, known, where=where)


def matching(patterns: Iterable[str], known: Collection[str], *, where: str) -> frozenset[str]:
    """All names that patterns match; see `named`."""
    found = set[str]()
    for pattern in patterns:
        shape = re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)
        names = [pattern] if pattern in known else [name for name in known if shape.fullmatch(name)]
        if not names:
            raise InputError(
                f"{where}: the recipe names {pattern!r}, but no node is called so; correct the recipe"
            )
        found.update(names)
    return frozenset(found)


def _graph(entry: Mapping[str, Any]) -> GraphRecipe:
    fields = dict(entry)
    _one_of(fields["half"], HALVES, "half")
    for name in ("fp32", "half_weights", "left"):
        fields[name] = _rules(fields.get(name, ()), name)
    if fields.get("quantised") is not None:
        fields["quantised"] = _quantised(as_table(fields["quantised"], "quantised"))
    return GraphRecipe(**fields)


def _rule(entry: Mapping[str, Any]) -> Rule:
    fields = {**entry, "nodes": _names(entry["nodes"]), "because": as_text(entry["because"], "because")}
    _one_of(fields.get("origin", "hand"), ORIGINS, "origin")
    return Rule(**fields)


def _quantised(entry: Mapping[str, Any]) -> Quantised:
    fields = dict(entry)
    _one_of(fields["type"], QUANTISED, "type")
    fields["nodes"] = _names(fields["nodes"])
    fields["method"] = as_text(fields["method"], "method")
    ranges = as_table(fields["ranges"], "ranges")
    fields["ranges"] = {name: _range(value, name) for name, value in ranges.items()}
    fields["smoothing"] = {
        name: tuple(as_whole(value, f"smoothing of {name}") for value in as_list(values, name))
        for name, values in as_table(fields.get("smoothing", {}), "smoothing").items()
    }
    fields["weights_alone"] = _rules(fields.get("weights_alone", ()), "weights_alone")
    return Quantised(**fields)


def _rules(value: object, name: str) -> tuple[Rule, ...]:
    return tuple(_rule(as_table(rule, name)) for rule in as_list(value, name))


def _names(entry: object) -> tuple[str, ...]:
    return tuple(as_text(name, "nodes") for name in as_list(entry, "nodes"))


def _range(value: object, name: str) -> float:
    number = as_number(value, f"the range of {name}")
    if not 0.0 <= number < math.inf:
        raise ValueError(f"the range of {name} is {value!r}, expected 0 or more, and finite")
    return number


def _one_of(value: object, known: tuple[str, ...], name: str) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
