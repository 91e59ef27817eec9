"""refdiff: zero-shot referring image segmentation (Ref-Diff), exported to ONNX and run without torch.

The public names below are imported when they are first used: `import refdiff` alone loads nothing else.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refdiff.batch.folder import FolderOptions as FolderOptions
    from refdiff.batch.folder import segment_many as segment_many
    from refdiff.batch.prediction import segment as segment
    from refdiff.calibration.calibrate import calibrate as calibrate
    from refdiff.calibration.convert import PrecisionOptions as PrecisionOptions
    from refdiff.calibration.convert import convert as convert
    from refdiff.camera.frame import Frame as Frame
    from refdiff.camera.frame import FrameResult as FrameResult
    from refdiff.camera.frame import TargetEvent as TargetEvent
    from refdiff.camera.frame import TargetResult as TargetResult
    from refdiff.camera.options import CameraOptions as CameraOptions
    from refdiff.camera.track import Tracker as Tracker
    from refdiff.camera.track import track as track
    from refdiff.contracts.inspection import inspect as inspect
    from refdiff.contracts.options import BackendOptions as BackendOptions
    from refdiff.contracts.options import RunOptions as RunOptions
    from refdiff.contracts.results import Candidates as Candidates
    from refdiff.contracts.results import Scores as Scores
    from refdiff.diagnostics.doctor import doctor as doctor
    from refdiff.engines.build import build as build
    from refdiff.errors import BundleError as BundleError
    from refdiff.errors import EngineError as EngineError
    from refdiff.errors import GateError as GateError
    from refdiff.errors import InputError as InputError
    from refdiff.errors import MissingDependencyError as MissingDependencyError
    from refdiff.errors import RefdiffError as RefdiffError
    from refdiff.errors import SourceError as SourceError
    from refdiff.errors import SourceLostError as SourceLostError
    from refdiff.evaluation.evaluate import evaluate as evaluate
    from refdiff.export.export import export as export_model  # noqa: F401 - public under this name
    from refdiff.loading import load as load
    from refdiff.models.fetch import fetch as fetch
    from refdiff.profiling.profile import profile as profile
    from refdiff.runtime.encoded_image import EncodedImage as EncodedImage
    from refdiff.runtime.pipeline import Segmenter as Segmenter
    from refdiff.runtime.refinement import Refinement as Refinement
    from refdiff.runtime.segmentation import Segmentation as Segmentation
    from refdiff.serve.client import Client as Client
    from refdiff.verification.check import check as check

__version__ = "0.1.0"

# Packages that report usage to their vendor read these when they are imported. What the user has set stays.
for _name in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")

logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    "BackendOptions": "contracts.options",
    "BundleError": "errors",
    "CameraOptions": "camera.options",
    "Candidates": "contracts.results",
    "Client": "serve.client",
    "EncodedImage": "runtime.encoded_image",
    "EngineError": "errors",
    "FolderOptions": "batch.folder",
    "Frame": "camera.frame",
    "FrameResult": "camera.frame",
    "GateError": "errors",
    "InputError": "errors",
    "MissingDependencyError": "errors",
    "PrecisionOptions": "calibration.convert",
    "RefdiffError": "errors",
    "Refinement": "runtime.refinement",
    "RunOptions": "contracts.options",
    "Scores": "contracts.results",
    "Segmentation": "runtime.segmentation",
    "Segmenter": "runtime.pipeline",
    "SourceError": "errors",
    "SourceLostError": "errors",
    "TargetEvent": "camera.frame",
    "TargetResult": "camera.frame",
    "Tracker": "camera.track",
    "build": "engines.build",
    "calibrate": "calibration.calibrate",
    "check": "verification.check",
    "convert": "calibration.convert",
    "doctor": "diagnostics.doctor",
    "evaluate": "evaluation.evaluate",
    "export_model": "export.export",
    "fetch": "models.fetch",
    "inspect": "contracts.inspection",
    "load": "loading",
    "profile": "profiling.profile",
    "segment": "batch.prediction",
    "segment_many": "batch.folder",
    "track": "camera.track",
}
"""Public name -> the module of this package that defines it."""

_NAMES_THERE = {"export_model": "export"}
"""Names that differ in their module: `refdiff.export` is a package."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'refdiff' has no attribute {name!r}")
    value = getattr(import_module(f"refdiff.{_HOMES[name]}"), _NAMES_THERE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
