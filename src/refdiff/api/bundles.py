"""From the name of a bundle to something that segments, or to a description of it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from refdiff.contracts.bundle import Bundle, Manifest, open_bundle
from refdiff.contracts.options import ALL_SHORTCUTS, Options, Shortcuts, options_for
from refdiff.contracts.session import SessionFactory
from refdiff.engines.factory import open_sessions
from refdiff.errors import BundleError, InputError
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.stages import Observer
from refdiff.runtime.tokenizer import Tokenizer

BUILT_IN = ("mini", "built-in")
"""Names of the bundle inside the package; a folder of such a name is written ./mini."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a bundle is; every file in it has been verified against its hash."""

    path: Path
    manifest: Manifest

    @property
    def size_bytes(self) -> int:
        """Of all listed files."""
        return sum(file.size_bytes for file in self.manifest.files.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary: the manifest, where it is, and how large the bundle."""
        return {
            "path": str(self.path),
            "model": self.manifest.spec.name,
            "size_bytes": self.size_bytes,
            **self.manifest.to_json(),
        }


def load(
    path: Path | str,
    *,
    backend: str = "auto",
    profile: str = "edge",
    mode: str = "full",
    seed: int = 0,
    reader: str = "rules",
    threads: int | None = None,
    memory: str | None = None,
    allow_random_weights: bool = False,
    shortcuts: Shortcuts = ALL_SHORTCUTS,
) -> Segmenter:
    """Open a bundle for segmenting; use the result in a `with` block.

    Args:
        path: the bundle's folder, or "mini" for the built-in one.
        backend: one of `refdiff.engines.factory.BACKENDS`.
        profile: "edge", "official" or "paper" (METHOD §1).
        mode: "gen", "gen+seg", "disc+seg" or "full".
        seed: of the posterior draw and the noise.
        reader: who finds a phrase's head word: "rules", or "spacy" where it is installed.
        threads: CPU threads inside one operator; None leaves the choice to the back-end.
        memory: of the device, for plans: a budget such as "8GB", or "resident", "shared" or "staged"; None
            takes what fits.
        allow_random_weights: open a bundle whose weights were drawn, not trained: to measure, not to believe.
        shortcuts: exact ones, all on; switched off to measure what each saves.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: an unknown profile, mode, reader or back-end, a memory that means nothing, or random
            weights that were not allowed.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing.
        EngineError: a TensorRT back-end was asked for, and the bundle has no plan that fits.
    """
    bundle = find_bundle(path)
    check_trained(bundle, allow_random_weights=allow_random_weights)
    options = options_for(
        bundle.spec, profile=profile, mode=mode, seed=seed, reader=reader, shortcuts=shortcuts
    )
    sessions = open_sessions(bundle, backend=backend, threads=threads, memory=memory)
    return segmenter_of(bundle, sessions, options)


def inspect(path: Path | str) -> Inspection:
    """Read and verify a bundle; no graph is loaded.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
    """
    bundle = find_bundle(path)
    return Inspection(path=bundle.path, manifest=bundle.manifest)


def find_bundle(path: Path | str) -> Bundle:
    """The verified bundle of a folder, or the built-in one.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
    """
    return open_bundle(bundle_path(path))


def bundle_path(path: Path | str) -> Path:
    """The folder that a bundle's name means.

    Raises:
        BundleError: it means the built-in bundle, which this installation lacks.
    """
    return _built_in_path() if str(path) in BUILT_IN else Path(path)


def check_trained(bundle: Bundle, *, allow_random_weights: bool) -> None:
    """Refuse to answer with weights that were drawn, not trained.

    Raises:
        InputError: the bundle holds such weights, and they were not allowed.
    """
    seed = bundle.manifest.random_seed
    if seed is not None and not allow_random_weights:
        raise InputError(
            f"{bundle.path} was exported with random weights (seed {seed}): its masks mean nothing; "
            "export trained weights, or allow it to measure time and memory (--allow-random-weights)"
        )


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


def _built_in_path() -> Path:
    path = Path(str(resources.files("refdiff.miniature"))) / "bundle"
    if not path.is_dir():
        raise BundleError(
            f"the built-in bundle is not in this installation (no {path}); install a released refdiff, "
            "or make a bundle with: refdiff export --output BUNDLE"
        )
    return path
