"""From the name of a bundle to the verified folder, and to a description of it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from refdiff.contracts.bundle import Bundle, Manifest, open_bundle
from refdiff.errors import BundleError, InputError

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


def _built_in_path() -> Path:
    path = Path(str(resources.files("refdiff.miniature"))) / "bundle"
    if not path.is_dir():
        raise BundleError(
            f"the built-in bundle is not in this installation (no {path}); install a released refdiff, "
            "or make a bundle with: refdiff export --output BUNDLE"
        )
    return path
