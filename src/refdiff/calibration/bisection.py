"""A smallest set of nodes that a graph needs in more bits, found by trying.

In: nodes in the graph's order, and a function that says whether the graph is inside its tolerance when some
of them are kept exact. Out: a set with which it is, and of which no single node can be left out.

The search halves: the shortest beginning of the nodes that suffices ends in a node that is needed; what comes
after it is dropped, and the search goes on before it. That takes about needed x log2(nodes) trials, and holds
for any function, since nothing is dropped untried. Whole modules are searched first, then the nodes of those
that are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

Inside = Callable[[frozenset[str]], bool]
"""Whether the graph is inside its tolerance with these nodes kept exact."""

Group = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Smallest:
    """What a search found."""

    nodes: tuple[str, ...]
    """In the graph's order; with them the graph is inside."""
    minimal: bool
    """No single node can be left out: each was tried. False where the trials ran out before."""
    trials: int


class Trials:
    """Counts what is tried, and tries nothing twice.

    Args:
        inside: what is asked.
        most: trials that are allowed.
    """

    def __init__(self, inside: Inside, *, most: int) -> None:
        self._inside = inside
        self._most = most
        self._known: dict[frozenset[str], bool] = {}

    @property
    def count(self) -> int:
        """Trials so far."""
        return len(self._known)

    def __call__(self, nodes: Iterable[str]) -> bool:
        """Whether the graph is inside with these nodes kept exact.

        Raises:
            OutOfTrials: that would be one too many.
        """
        kept = frozenset(nodes)
        if kept not in self._known:
            if self.count >= self._most:
                raise OutOfTrials
            self._known[kept] = self._inside(kept)
        return self._known[kept]

    def smallest_inside(self, nodes: Sequence[str]) -> tuple[str, ...]:
        """Of the sets that were inside, a smallest one; all nodes where none was."""
        sets = [kept for kept, inside in self._known.items() if inside]
        best = min(sets, key=len, default=frozenset(nodes))
        return tuple(node for node in nodes if node in best)


class OutOfTrials(Exception):  # noqa: N818 - a signal inside this module and its caller, not an error
    """The search may try no more."""


def smallest(nodes: Sequence[str], trials: Trials, *, guess: Sequence[str] = ()) -> Smallest:
    """A smallest set of nodes that must be kept exact.

    Args:
        nodes: all candidates, in the graph's order; keeping all exact is inside, keeping none is not.
        trials: what is asked.
        guess: nodes that may suffice: where they do, only they are searched.

    Returns:
        The set. Where the trials run out, the smallest that was inside.
    """
    try:
        found = _nodes(nodes, trials, guess)
        return Smallest(nodes=_pruned(found, trials), minimal=True, trials=trials.count)
    except OutOfTrials:
        return Smallest(nodes=trials.smallest_inside(nodes), minimal=False, trials=trials.count)


def _nodes(nodes: Sequence[str], trials: Trials, guess: Sequence[str]) -> tuple[str, ...]:
    guessed = frozenset(guess)
    candidates = [node for node in nodes if node in guessed]
    if not (candidates and trials(candidates)):
        modules = _needed(_modules(nodes), trials)
        kept = {node for module in modules for node in module}
        candidates = [node for node in nodes if node in kept]
    found = {node for (node,) in _needed([(node,) for node in candidates], trials)}
    return tuple(node for node in nodes if node in found)


def _needed(groups: Sequence[Group], trials: Trials) -> list[Group]:
    """The groups that are needed, where all together are inside."""
    needed, rest = list[Group](), list(groups)
    while rest and not trials(_flat(needed)):
        end = _shortest(needed, rest, trials)
        needed.append(rest[end - 1])
        rest = rest[: end - 1]
    return needed


def _shortest(needed: Sequence[Group], rest: Sequence[Group], trials: Trials) -> int:
    """How many of `rest`, from its beginning, suffice beside `needed`; all of them do."""
    low, high = 1, len(rest)
    while low < high:
        middle = (low + high) // 2
        if trials(_flat([*needed, *rest[:middle]])):
            high = middle
        else:
            low = middle + 1
    return high


def _pruned(nodes: Sequence[str], trials: Trials) -> tuple[str, ...]:
    """Leave out, one at a time, whatever can be: trials need not agree that more nodes are better."""
    kept = list(nodes)
    while True:
        idle = next((node for node in kept if trials(set(kept) - {node})), None)
        if idle is None:
            return tuple(kept)
        kept.remove(idle)


def _modules(nodes: Sequence[str]) -> list[Group]:
    """Nodes by the module they are named after, in the order of each module's first."""
    groups = dict[str, list[str]]()
    for node in nodes:
        groups.setdefault(node.rpartition("/")[0] or node, []).append(node)
    return [tuple(group) for group in groups.values()]


def _flat(groups: Iterable[Group]) -> Iterator[str]:
    return (node for group in groups for node in group)
