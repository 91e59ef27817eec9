"""Find a smallest set of nodes that a graph needs in more bits, by trying.

In: nodes in the graph's order, and a function that returns whether the graph is inside its tolerance when
some of them are kept exact. Out: a set with which it is, and from which no single node can be left out.

The search bisects: the shortest prefix of the nodes that suffices ends in a node that is needed; what comes
after it is dropped, and the search goes on before it. That takes about needed x log2(nodes) trials. It holds
for any function, since nothing is dropped untried. Whole modules are searched first, then the nodes of those
that are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

Inside = Callable[[frozenset[str]], bool]
"""Returns whether the graph is inside its tolerance with these nodes kept exact."""

Group = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SmallestSet:
    """The result of a search."""

    nodes: tuple[str, ...]
    """In the graph's order; with them the graph is inside."""
    minimal: bool
    """True if leaving out each node was tried; False if the budget ran out before."""
    trials: int


class SearchBudget:
    """Counts trials up to a limit, and never tries the same set twice.

    Args:
        inside: runs one trial.
        most: number of trials allowed.
    """

    def __init__(self, inside: Inside, *, most: int) -> None:
        self._inside = inside
        self._most = most
        self._known: dict[frozenset[str], bool] = {}

    @property
    def count(self) -> int:
        """Number of trials so far."""
        return len(self._known)

    def __call__(self, nodes: Iterable[str]) -> bool:
        """Return whether the graph is inside with these nodes kept exact.

        Raises:
            BudgetExhausted: no more trials are allowed.
        """
        kept = frozenset(nodes)
        if kept not in self._known:
            if self.count >= self._most:
                raise BudgetExhausted
            self._known[kept] = self._inside(kept)
        return self._known[kept]

    def smallest_inside(self, nodes: Sequence[str]) -> tuple[str, ...]:
        """Return a smallest of the sets that were inside, in the order of `nodes`; all nodes if none was."""
        sets = [kept for kept, inside in self._known.items() if inside]
        best = min(sets, key=len, default=frozenset(nodes))
        return tuple(node for node in nodes if node in best)


class BudgetExhausted(Exception):  # noqa: N818 - a signal inside this module and its caller, not an error
    """No more trials are allowed."""


def find_smallest(nodes: Sequence[str], budget: SearchBudget, *, guess: Sequence[str] = ()) -> SmallestSet:
    """Find a smallest set of nodes that must be kept exact.

    Args:
        nodes: all candidates, in the graph's order; keeping all exact is inside, keeping none is not.
        budget: runs the trials.
        guess: nodes that may suffice; if they do, only they are searched.

    Returns:
        The set. If the budget runs out, the smallest set that was inside.
    """
    try:
        found = _search(nodes, budget, guess)
        return SmallestSet(nodes=_prune(found, budget), minimal=True, trials=budget.count)
    except BudgetExhausted:
        return SmallestSet(nodes=budget.smallest_inside(nodes), minimal=False, trials=budget.count)


def _search(nodes: Sequence[str], budget: SearchBudget, guess: Sequence[str]) -> tuple[str, ...]:
    guessed = frozenset(guess)
    candidates = [node for node in nodes if node in guessed]
    if not (candidates and budget(candidates)):
        modules = _find_needed(_group_by_module(nodes), budget)
        kept = {node for module in modules for node in module}
        candidates = [node for node in nodes if node in kept]
    found = {node for (node,) in _find_needed([(node,) for node in candidates], budget)}
    return tuple(node for node in nodes if node in found)


def _find_needed(groups: Sequence[Group], budget: SearchBudget) -> list[Group]:
    """Return the groups that are needed; all groups together are inside."""
    needed, rest = list[Group](), list(groups)
    while rest and not budget(_flatten(needed)):
        end = _shortest_prefix(needed, rest, budget)
        needed.append(rest[end - 1])
        rest = rest[: end - 1]
    return needed


def _shortest_prefix(needed: Sequence[Group], rest: Sequence[Group], budget: SearchBudget) -> int:
    """Return the length of the shortest prefix of `rest` that suffices together with `needed`."""
    low, high = 1, len(rest)
    while low < high:
        middle = (low + high) // 2
        if budget(_flatten([*needed, *rest[:middle]])):
            high = middle
        else:
            low = middle + 1
    return high


def _prune(nodes: Sequence[str], budget: SearchBudget) -> tuple[str, ...]:
    """Leave out nodes one at a time while the graph stays inside: more nodes are not always better."""
    kept = list(nodes)
    while True:
        idle = next((node for node in kept if budget(set(kept) - {node})), None)
        if idle is None:
            return tuple(kept)
        kept.remove(idle)


def _group_by_module(nodes: Sequence[str]) -> list[Group]:
    """Group nodes by the module in their names, in the order of each module's first node."""
    groups = dict[str, list[str]]()
    for node in nodes:
        groups.setdefault(node.rpartition("/")[0] or node, []).append(node)
    return [tuple(group) for group in groups.values()]


def _flatten(groups: Iterable[Group]) -> Iterator[str]:
    return (node for group in groups for node in group)
