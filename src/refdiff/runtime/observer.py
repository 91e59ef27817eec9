"""The pipeline's named stages, and the observer that is notified when one begins and ends.

A stage is a step of docs/method.md. `encode` and `segment` are the two verbs the stages belong to; time in a
verb and in none of its stages is Python between them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar, get_args

Verb = Literal["encode", "segment"]
Stage = Literal[
    "picture",  # decode and check the image
    "proposals",  # METHOD §2
    "latent",  # METHOD §4, the part that needs no phrase
    "soft",  # METHOD §6
    "reading",  # METHOD §3, parse the phrase
    "attention",  # METHOD §4, the part that needs the phrase
    "text",  # METHOD §3, CLIP's text vectors
    "crops",  # METHOD §5
    "scoring",  # METHOD §7
]
"""Names of the stages; recorded profiles hold them, so they are never renamed."""

STAGES: tuple[Stage, ...] = get_args(Stage)
VERBS: tuple[Verb, ...] = get_args(Verb)


class Observer(Protocol):
    """Receives every verb and stage; stages nest inside verbs."""

    def stage(self, name: Verb | Stage) -> AbstractContextManager[object]:
        """Return a context that is entered when `name` begins and left when it ends, also by an error."""
        ...


class NullObserver:
    """Observer that ignores all events."""

    def stage(self, name: Verb | Stage) -> AbstractContextManager[object]:  # noqa: ARG002 - the protocol's
        """Return a context that does nothing."""
        return _NOTHING


_NOTHING = nullcontext()


class _Observed(Protocol):
    _observer: Observer


_S = TypeVar("_S", bound=_Observed)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def observed(
    name: Verb | Stage,
) -> Callable[[Callable[Concatenate[_S, _P], _R]], Callable[Concatenate[_S, _P], _R]]:
    """Report each call of a method to its object's `_observer`, as verb or stage `name`."""

    def decorate(method: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
        @wraps(method)
        def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self._observer.stage(name):
                return method(self, *args, **kwargs)

        return call

    return decorate
