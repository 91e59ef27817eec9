"""What installing and importing refdiff costs a device: six light packages, and none of the heavy ones."""

import importlib.metadata
import json
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

import refdiff

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "cuda",
    "diffusers",
    "transformers",
    "ftfy",  # required, but only by phrases that are not plain ASCII
)
LEAN_CORE = {"ftfy", "numpy", "pillow", "rich", "tokenizers", "typer"}


def heavy_packages_loaded_by(statement: str) -> list[str]:
    """The heavy packages that `statement` loads in a fresh interpreter, beyond those it starts with."""
    before = "import sys; _before = set(sys.modules)"
    report = (
        f"import json; print(json.dumps([n for n in {HEAVY!r} if n in sys.modules and n not in _before]))"
    )
    command = [sys.executable, "-c", f"{before}\n{statement}\n{report}"]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert process.returncode == 0, process.stderr
    return list(json.loads(process.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["refdiff", "refdiff.loading", "refdiff.cli", "refdiff.engines.factory"])
def test_importing_the_public_face_loads_no_heavy_package(module: str) -> None:
    assert heavy_packages_loaded_by(f"import {module}") == []


def test_the_heavy_import_check_sees_a_heavy_import() -> None:
    assert heavy_packages_loaded_by("import sys; sys.modules['torch'] = sys") == ["torch"]


def test_the_lean_core_requires_exactly_the_six_light_packages() -> None:
    declared = (Requirement(line) for line in importlib.metadata.requires("refdiff") or [])
    without_extra = {r.name for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})}
    assert without_extra == LEAN_CORE


def test_every_public_name_can_be_imported_and_is_listed() -> None:
    assert {name for name in dir(refdiff) if not name.startswith("_")} <= {*refdiff.__all__}
    for name in refdiff.__all__:
        assert getattr(refdiff, name) is not None


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'abacus'"):
        refdiff.abacus  # noqa: B018 - the look-up is what is tested


def test_load_imports_few_modules_of_the_package() -> None:
    """Loading a bundle is the first thing a device does; verbs it does not use stay out of memory."""
    statement = "import refdiff, sys; refdiff.load"
    report = "print(sum(name.split('.')[0] == 'refdiff' for name in sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(process.stdout) <= 70
