"""The pipeline's stages, and whom it tells when one begins and ends.

A stage is a step of METHOD with a name. `encode` and `segment` are the two verbs the stages lie in; what is
in a verb and in none of its stages is Python between them. The pipeline tells nobody unless an observer is
given.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar, get_args

Verb = Literal["encode", "segment"]
Stage = Literal[
    "picture",  # decoding and checking
    "proposals",  # METHOD §2
    "latent",  # METHOD §4, what the picture alone decides
    "soft",  # METHOD §6
    "reading",  # METHOD §3, the phrase's head word
    "attention",  # METHOD §4, what the phrase decides
    "text",  # METHOD §3, CLIP's text vectors
    "crops",  # METHOD §5
    "scoring",  # METHOD §7
]
STAGES: tuple[Stage, ...] = get_args(Stage)
VERBS: tuple[Verb, ...] = get_args(Verb)


class Observer(Protocol):
    """Told of every verb and stage, from outside in."""

    def stage(self, name: Verb | Stage) -> AbstractContextManager[object]:
        """Entered when it begins, left when it ends, by an error too."""
        ...


class Nobody:
    """The observer of a pipeline that nobody watches."""

    def stage(self, name: Verb | Stage) -> AbstractContextManager[object]:  # noqa: ARG002 - the protocol's
        """Nothing happens."""
        return _NOTHING


_NOTHING = nullcontext()


class _Observed(Protocol):
    _observer: Observer


_S = TypeVar("_S", bound=_Observed)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def staged(
    name: Verb | Stage,
) -> Callable[[Callable[Concatenate[_S, _P], _R]], Callable[Concatenate[_S, _P], _R]]:
    """Tell the `_observer` of a method's object of each call, as verb or stage `name`."""

    def observed(method: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
        @wraps(method)
        def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self._observer.stage(name):
                return method(self, *args, **kwargs)

        return call

    return observed
