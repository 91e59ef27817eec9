"""Find a bundle by its name, verify it and describe it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from refdiff.contracts.bundle import Bundle, Manifest, open_bundle
from refdiff.errors import BundleError, InputError

MINIATURE_NAME = "mini"
"""Name of the built-in model, and of its bundle."""

MINIATURES = {MINIATURE_NAME: "bundle", "mini-edge": "bundle-edge"}
"""Name of a built-in model, and of its bundle -> the bundle's folder in the package."""

BUILT_IN = (*MINIATURES, "built-in")
"""Names of the bundles inside the package; write ./mini for a folder of that name."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A bundle whose files have all been verified against their hashes."""

    path: Path
    manifest: Manifest

    @property
    def size_bytes(self) -> int:
        """Size of all listed files together."""
        return sum(file.size_bytes for file in self.manifest.files.values())

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary: the manifest, the path and the size."""
        return {
            "path": str(self.path),
            "model": self.manifest.spec.name,
            "size_bytes": self.size_bytes,
            **self.manifest.to_json(),
        }


def inspect(path: Path | str, *, expect: str | None = None) -> Inspection:
    """Read and verify a bundle; no graph is loaded. See `find_bundle`."""
    bundle = find_bundle(path, expect=expect)
    return Inspection(path=bundle.path, manifest=bundle.manifest)


def find_bundle(path: Path | str, *, expect: str | None = None) -> Bundle:
    """Return the verified bundle of a folder, or a built-in one.

    Args:
        path: the folder, or a name of `BUILT_IN`.
        expect: hash of the manifest that the bundle must have, as `inspect` prints it; None: any.

    Raises:
        BundleError: the bundle is missing, damaged or newer, or another one than expected.
    """
    bundle = open_bundle(bundle_path(path))
    if expect is not None and expect.lower() != bundle.manifest.sha256:
        raise BundleError(
            f"{bundle.path} is another bundle than expected: got sha256 {bundle.manifest.sha256}, "
            f"expected {expect}; copy the right one, or leave out --expect"
        )
    return bundle


def bundle_path(path: Path | str, *, package: Path | None = None) -> Path:
    """Return the folder that a bundle's name stands for.

    Args:
        path: a folder, or a name of `BUILT_IN`.
        package: folder of the miniature; None: that of this installation.

    Raises:
        BundleError: the built-in bundle is asked for, and this installation lacks it.
    """
    return _built_in_path(str(path), package or _package_folder()) if str(path) in BUILT_IN else Path(path)


def built_in_name(path: Path) -> str | None:
    """Return the name of the built-in bundle that lies at a path; None: it is another folder."""
    names = {_package_folder() / folder: name for name, folder in MINIATURES.items()}
    return names.get(path)


def check_trained(bundle: Bundle, *, allow_random_weights: bool) -> None:
    """Refuse a bundle of random weights.

    Raises:
        InputError: the weights are random, and that was not allowed.
    """
    seed = bundle.manifest.random_seed
    if seed is not None and not allow_random_weights:
        raise InputError(
            f"{bundle.path} was exported with random weights (seed {seed}): its masks mean nothing; "
            "export trained weights, or allow it to measure time and memory (--allow-random-weights)"
        )


def bundle_cautions(bundle: Bundle) -> tuple[str, ...]:
    """Return what every answer of a bundle must say of it, the gravest first (`Segmentation.cautions`)."""
    manifest = bundle.manifest
    cautions = {
        "random weights: the mask means nothing": manifest.random_seed is not None,
        "miniature: knows its own rendered table-top scenes only; on any other image it guesses": (
            bundle.spec.name.split("-")[0] == MINIATURE_NAME
        ),
        f"precision {manifest.precision}: answers can differ from those of the fp32 models; "
        "measure it with: refdiff check BUNDLE": manifest.precision != "fp32",
    }
    return tuple(text for text, applies in cautions.items() if applies)


def _built_in_path(name: str, package: Path) -> Path:
    model = name if name in MINIATURES else MINIATURE_NAME
    path = package / MINIATURES[model]
    if not path.is_dir():
        raise BundleError(
            f"the built-in bundle is not in this installation (no {path}); install a released refdiff, "
            f"or make a bundle with: refdiff export {model} --output BUNDLE"
        )
    return path


def _package_folder() -> Path:
    return Path(str(resources.files("refdiff.miniature")))
