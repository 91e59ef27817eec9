"""The files of a prediction: the mask, an overlay on the image, and a JSON record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.batch.prediction import Prediction
from refdiff.batch.prompted import PromptedMasks
from refdiff.contracts.atomic_io import check_targets, write_files
from refdiff.errors import InputError
from refdiff.runtime.image import png


def check_outputs(image: Path, *, output: Path | None, overlay: Path | None, overwrite: bool = False) -> None:
    """Refuse, before any work, outputs that `save` could not write, or that would replace the image itself.

    Raises:
        InputError: names the output and the reason.
    """
    paths = output_paths(output, overlay)
    for path in paths.values():
        if path.exists() and image.exists() and path.samefile(image):
            raise InputError(f"output {path} is the image itself; choose another name")
    check_targets(paths.values(), overwrite=overwrite)


def output_paths(output: Path | None, overlay: Path | None) -> dict[str, Path]:
    """Return the files that `save` will write: kind -> path; overlay and JSON lie next to the mask.

    Raises:
        InputError: a name does not end in .png, or two are the same.
    """
    paths: dict[str, Path] = {}
    if output is not None:
        paths["mask"] = output
        paths["overlay"] = output.with_suffix(".overlay.png")
    if overlay is not None:
        paths["overlay"] = overlay
    for path in paths.values():
        if path.suffix.lower() != ".png":
            raise InputError(f"got output {path}, expected a name that ends in .png")
    if output is not None:
        paths["json"] = output.with_suffix(".json")
    if len(set(paths.values())) < len(paths):
        raise InputError(f"mask and overlay are both {output}; give them different names")
    return paths


def save(
    prediction: Prediction | PromptedMasks,
    *,
    output: Path | None = None,
    overlay: Path | None = None,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Write mask, overlay and JSON, all or none.

    Args:
        prediction: from `segment` or `segment_prompt`.
        output: the mask's PNG, 255 inside and 0 outside; .overlay.png and .json are put next to it.
        overlay: the overlay's PNG, if it is wanted elsewhere or without the mask.
        overwrite: replace existing files.
        about: entries that precede the prediction in the JSON.

    Returns:
        The written files: "mask", "overlay", "json" -> path.

    Raises:
        InputError: a file exists, or the disk is read-only or full.
    """
    paths = output_paths(output, overlay)
    contents = {
        "mask": lambda: png(np.where(prediction.result.mask, np.uint8(255), np.uint8(0))),
        "overlay": lambda: png(prediction.result.overlay()),
        "json": lambda: (
            json.dumps({**(about or {}), **prediction.to_json()}, allow_nan=False, indent=1) + "\n"
        ).encode(),
    }
    write_files({path: contents[kind]() for kind, path in paths.items()}, overwrite=overwrite)
    return paths
