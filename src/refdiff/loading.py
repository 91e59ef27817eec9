"""From the name of a bundle to something that segments."""

from __future__ import annotations

from pathlib import Path

from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.options import Options, options_for
from refdiff.contracts.session import SessionFactory
from refdiff.engines.factory import open_sessions
from refdiff.runtime.observer import Observer
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.tokenizer import Tokenizer


def load(
    path: Path | str,
    *,
    backend: str = "auto",
    variant: str = "edge",
    mode: str = "full",
    seed: int = 0,
    reader: str = "rules",
    threads: int | None = None,
    memory: str | None = None,
    allow_random_weights: bool = False,
) -> Segmenter:
    """Open a bundle for segmenting; use the result in a `with` block.

    Args:
        path: the bundle's folder, or "mini" for the built-in one.
        backend: one of `refdiff.engines.factory.BACKENDS`.
        variant: "edge", "official" or "paper" (METHOD §1).
        mode: "gen", "gen+seg", "disc+seg" or "full".
        seed: of the posterior draw and the noise.
        reader: who finds a phrase's head word: "rules", or "spacy" where it is installed.
        threads: CPU threads inside one operator; None leaves the choice to the back-end.
        memory: of the device, for plans: a budget such as "8GB", or "resident", "shared" or "staged"; None
            takes what fits.
        allow_random_weights: open a bundle whose weights were drawn, not trained: to measure, not to believe.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: an unknown variant, mode, reader or back-end, a memory that means nothing, or random
            weights that were not allowed.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing.
        EngineError: a TensorRT back-end was asked for, and the bundle has no plan that fits.
    """
    bundle = find_bundle(path)
    check_trained(bundle, allow_random_weights=allow_random_weights)
    options = options_for(bundle.spec, variant=variant, mode=mode, seed=seed, reader=reader)
    sessions = open_sessions(bundle, backend=backend, threads=threads, memory=memory)
    return segmenter_of(bundle, sessions, options)


def segmenter_of(
    bundle: Bundle, sessions: SessionFactory, options: Options, observer: Observer | None = None
) -> Segmenter:
    """The numpy pipeline over a bundle's tables and somebody's sessions."""
    return Segmenter(
        sessions=sessions,
        spec=bundle.spec,
        options=options,
        tokenizer=Tokenizer(bundle.tokenizer_json(), bundle.spec.context_length),
        positions=bundle.clip_positions(),
        observer=observer,
    )
