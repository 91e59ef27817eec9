"""Blocks of a graph: the unit in which precision is tried and chosen.

A block is a module path up to its first index: `unet.down_blocks.1`, `image_encoder.blocks.3`. Nodes outside
any indexed module form one block named after their first module.
"""

from __future__ import annotations

from collections.abc import Iterable


def block_of(node: str) -> str:
    """The block a node belongs to, by its name."""
    parts = node.rpartition("/")[0].split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return parts[0] or "graph"


def blocks(nodes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Block -> its nodes, both in the order given."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        found.setdefault(block_of(node), []).append(node)
    return {name: tuple(members) for name, members in found.items()}
