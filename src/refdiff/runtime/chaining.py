"""From graph to graph without the host in between, where a back-end has a device.

In: a session, and feeds that are host arrays or what another session of the same factory left on the device.
Out: the same, by output. Sessions without a device are fed host arrays and return them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from refdiff.contracts.session import Array, ChainingSession, Feed, Session


def run_keeping(
    session: Session, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None
) -> Mapping[str, Feed]:
    """Run once and leave the outputs where they are made; each is good until the session's next run.

    Raises:
        InputError: a feed does not fit.
        EngineError: the back-end failed.
    """
    if isinstance(session, ChainingSession):
        return session.run_on_device(feeds, outputs)
    return session.run(_all_on_host(feeds), outputs)


def run_fed(
    session: Session, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None
) -> dict[str, Array]:
    """Run once with feeds of either kind, and return host arrays.

    Raises:
        InputError: a feed does not fit.
        EngineError: the back-end failed.
    """
    if isinstance(session, ChainingSession):
        return session.run(feeds, outputs)
    return session.run(_all_on_host(feeds), outputs)


def on_host(values: Feed) -> Array:
    """The values as a host array; one that is on the host is not copied."""
    return values if isinstance(values, np.ndarray) else values.to_host()


def _all_on_host(feeds: Mapping[str, Feed]) -> dict[str, Array]:
    return {name: on_host(values) for name, values in feeds.items()}
