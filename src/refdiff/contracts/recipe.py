"""A precision recipe: how many bits each tensor of a bundle gets, and why (DESIGN §5).

A small file that is written by the toolkit, read by people, corrected by hand and used again:

    {"format": 1, "model": "refdiff-mini", "sources": {...},
     "graphs": {"unet": {"half": "fp16",
                         "fp32": [{"nodes": ["*/Softmax*"], "because": "...", "origin": "rule"}],
                         "quantised": {"type": "int8", "nodes": [...], "ranges": {"tensor": 3.1}, ...},
                         "left": [{"nodes": [...], "because": "...", "origin": "sensitivity"}]}}}

Nodes are named as the exporter named them, after their modules; `*` stands for any part of a name.
`unet_taps` has no entry of its own: it is a part of `unet`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

from refdiff.errors import InputError

RECIPE_FORMAT = 1

RECIPE_NAME = "recipe.json"
"""In a bundle: the recipe its graphs were made by."""

Half = Literal["fp16", "bf16"]
HALVES: tuple[str, ...] = get_args(Half)
QuantisedType = Literal["int8", "fp8"]
QUANTISED: tuple[str, ...] = get_args(QuantisedType)
Origin = Literal["rule", "audit", "bisect", "sensitivity", "gate", "hand"]
"""Who asked for it: the built-in rules, a measurement of that name, the gate that refused, or a person."""


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
    """Tensor -> largest magnitude it keeps; the data input of every node above has one."""
    method: str
    """How the ranges were found: "minmax", "percentile" or "entropy"."""
    smoothing: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Tensor -> per-channel divisors of SmoothQuant, where it was used."""


@dataclass(frozen=True, kw_only=True)
class GraphRecipe:
    """One graph."""

    half: Half
    fp32: tuple[Rule, ...] = ()
    """Nodes that stay in single precision; nodes caught between them join them."""
    quantised: Quantised | None = None
    left: tuple[Rule, ...] = ()
    """Nodes that could be quantised and are not."""

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
        if fields.pop("format", None) != RECIPE_FORMAT:
            raise InputError(f"{where}: got format {document.get('format')!r}, expected {RECIPE_FORMAT}")
        try:
            graphs = {str(name): _graph(entry) for name, entry in fields.pop("graphs").items()}
            return cls(graphs=graphs, **fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{where} is not a precision recipe ({error}); write one with: refdiff audit"
            ) from error

    def to_text(self) -> str:
        """The file's content."""
        return json.dumps(self.to_json(), indent=1) + "\n"


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        InputError: it cannot be read, or is not a recipe.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error})") from error
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


def matching(patterns: Iterable[str], known: Collection[str], *, where: str) -> frozenset[str]:
    """All names that patterns match; see `named`."""
    found = set[str]()
    for pattern in patterns:
        names = [pattern] if pattern in known else [name for name in known if fnmatchcase(name, pattern)]
        if not names:
            raise InputError(
                f"{where}: the recipe names {pattern!r}, but no node is called so; correct the recipe"
            )
        found.update(names)
    return frozenset(found)


def _graph(entry: Mapping[str, Any]) -> GraphRecipe:
    fields = dict(entry)
    if fields["half"] not in HALVES:
        raise ValueError(f"half is {fields['half']!r}, expected one of {', '.join(HALVES)}")
    for name in ("fp32", "left"):
        fields[name] = tuple(_rule(rule) for rule in fields.get(name, ()))
    if fields.get("quantised") is not None:
        fields["quantised"] = _quantised(fields["quantised"])
    return GraphRecipe(**fields)


def _rule(entry: Mapping[str, Any]) -> Rule:
    fields = {**entry, "nodes": _names(entry["nodes"])}
    return Rule(**fields)


def _quantised(entry: Mapping[str, Any]) -> Quantised:
    fields = dict(entry)
    if fields["type"] not in QUANTISED:
        raise ValueError(f"type is {fields['type']!r}, expected one of {', '.join(QUANTISED)}")
    fields["nodes"] = _names(fields["nodes"])
    fields["ranges"] = {str(name): float(value) for name, value in fields["ranges"].items()}
    fields["smoothing"] = {
        str(name): tuple(float(value) for value in values)
        for name, values in fields.get("smoothing", {}).items()
    }
    return Quantised(**fields)


def _names(entry: object) -> tuple[str, ...]:
    if not isinstance(entry, (list, tuple)) or not all(isinstance(name, str) for name in entry):
        raise TypeError(f"nodes is {entry!r}, expected a list of names")
    return tuple(entry)
