"""Which bundles make a ladder, and how each is executed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from refdiff.accuracy.gates import exactness
from refdiff.api.bundles import find_bundle
from refdiff.api.models import MINIATURE
from refdiff.contracts.bundle import Bundle
from refdiff.engines.factory import open_sessions
from refdiff.errors import BundleError, InputError, MissingDependencyError

EXACT = "fp32"

ROUNDED = "ort-rounded"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """A bundle and the back-end that runs it."""

    bundle: Bundle
    backend: str
    reason: str
    """Why this back-end."""
    note: str | None
    """How half precision is executed; None where there is none."""

    @property
    def precision(self) -> str:
        """The bundle's."""
        return self.bundle.manifest.precision


def executions(bundle: Bundle, against: Sequence[Path | str], backend: str) -> tuple[Execution, ...]:
    """The bundles of a ladder, the most exact first, the judged one last.

    Args:
        bundle: the one that is judged.
        against: more exact bundles of the same model. For a bundle of the miniature the built-in one in fp32
            need not be named.
        backend: one of `refdiff.engines.factory.BACKENDS`; "auto" without a GPU executes half precision with
            every result rounded, where that can be done.

    Raises:
        BundleError: a bundle is missing or damaged.
        InputError: a bundle of another model, one that is not more exact, two of one precision, or an unknown
            back-end.
        MissingDependencyError: the back-end's package is not installed.
    """
    siblings = [find_bundle(each) for each in against]
    for each in siblings:
        _check_sibling(each, bundle)
    siblings.sort(key=_exactness)
    for one, other in pairwise(siblings):
        if one.manifest.precision == other.manifest.precision:
            raise InputError(
                f"{one.path} and {other.path} are both in {one.manifest.precision}, expected one bundle for "
                "each precision; leave one out"
            )
    if all(each.manifest.precision != EXACT for each in (bundle, *siblings)):
        siblings = [*_built_in(bundle), *siblings]
    return tuple(execution(each, backend) for each in (*siblings, bundle))


def execution(bundle: Bundle, backend: str) -> Execution:
    """How a bundle is run when this back-end was asked for; no graph is loaded."""
    sessions = open_sessions(bundle, backend=backend)
    chosen, reason = sessions.backend, sessions.reason
    halves = any(graph.precision != EXACT for graph in bundle.manifest.graphs.values())
    note: str | None = None
    if halves and backend == "auto" and chosen == "ort-cpu":
        try:
            chosen = open_sessions(bundle, backend=ROUNDED).backend
            reason = f"{reason}; the bundle holds half precision, which only {ROUNDED} executes on a CPU"
        except MissingDependencyError as error:
            note = f"computed in float32, not as a device will: {error}"
    if halves and chosen == ROUNDED:
        note = "every half-precision result rounded, as a device does; this CPU's kernels would not"
    elif halves and chosen == "ort-cpu" and note is None:
        note = f"this CPU's kernels compute half precision in float32; --backend {ROUNDED} executes it"
    return Execution(bundle=bundle, backend=chosen, reason=reason, note=note)


def _check_sibling(sibling: Bundle, bundle: Bundle) -> None:
    if not _same_model(sibling, bundle):
        theirs, ours = sibling.spec.name, bundle.spec.name
        raise InputError(
            f"{sibling.path} is of {theirs}, {bundle.path} of "
            f"{ours if theirs != ours else f'{ours} with other weights or sizes'}; "
            "--against takes bundles that were exported from the same weights"
        )
    if _exactness(sibling) >= _exactness(bundle):
        raise InputError(
            f"{sibling.path} is in {sibling.manifest.precision}, {bundle.path} in "
            f"{bundle.manifest.precision}; --against takes more exact bundles than the one that is checked"
        )


def _same_model(one: Bundle, other: Bundle) -> bool:
    return dict(one.manifest.sources) == dict(other.manifest.sources) and one.spec == other.spec


def _exactness(bundle: Bundle) -> int:
    return exactness(bundle.manifest.precision)


def _built_in(bundle: Bundle) -> list[Bundle]:
    """The built-in bundle, if it is the same model and is installed."""
    if bundle.spec.name != MINIATURE:
        return []
    try:
        built_in = find_bundle("mini")
    except BundleError:
        return []
    return [built_in] if _same_model(built_in, bundle) else []
