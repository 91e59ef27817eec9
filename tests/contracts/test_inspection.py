"""The name of the built-in bundle, and what answers say of a bundle."""

from dataclasses import replace
from pathlib import Path

import pytest

from refdiff.contracts import inspection
from refdiff.contracts.inspection import BUILT_IN, bundle_cautions, find_bundle
from refdiff.errors import BundleError


@pytest.mark.parametrize(
    ("name", "folder"), [("mini", "bundle"), ("built-in", "bundle"), ("mini-edge", "bundle-edge")]
)
def test_each_built_in_bundle_is_found_by_its_name(name: str, folder: str, mini_bundle: Path) -> None:
    assert name in BUILT_IN
    assert inspection.inspect(name).path == mini_bundle.parent / folder


def test_an_installation_without_the_built_in_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="built-in bundle is not in this installation"):
        inspection.bundle_path("mini", package=tmp_path)


@pytest.mark.parametrize(
    ("name", "random_seed", "precision", "topics"),
    [
        ("refdiff", None, "fp32", []),
        ("refdiff", 7, "fp32", ["random weights"]),
        ("mini", None, "fp32", ["miniature"]),
        ("mini", 7, "int8", ["random weights", "miniature", "precision int8"]),
        ("minimal", None, "fp16", ["precision fp16"]),
    ],
)
def test_every_answer_of_a_bundle_carries_its_cautions(
    tiny_bundle: Path, name: str, random_seed: int | None, precision: str, topics: list[str]
) -> None:
    bundle = find_bundle(tiny_bundle)
    manifest = replace(
        bundle.manifest,
        spec=replace(bundle.spec, name=name),
        random_seed=random_seed,
        precision=precision,
    )
    cautions = bundle_cautions(replace(bundle, manifest=manifest))
    assert [caution.split(":")[0] for caution in cautions] == topics


def test_a_pinned_bundle_is_the_only_one_that_opens() -> None:
    sha256 = find_bundle("mini").manifest.sha256
    assert inspection.inspect("mini", expect=sha256.upper()).to_json()["sha256"] == sha256
    with pytest.raises(
        BundleError, match=f"another bundle than expected: got sha256 {sha256}, expected 0000"
    ):
        find_bundle("mini", expect="0" * 64)
