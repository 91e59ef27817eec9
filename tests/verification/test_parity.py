"""Which bundles make a ladder, in which order, and how each is executed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import find_bundle
from refdiff.engines.factory import open_sessions
from refdiff.errors import BundleError, InputError, MissingDependencyError
from refdiff.verification.parity import ROUNDED, plan_run, plan_runs
from tests.support.damage import copy_of, edit_manifest

pytest.importorskip("onnxruntime")

Labelled = Callable[[str], Path]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """The miniature's bundle under another precision's name; no graph of it is run here."""
    folder = tmp_path_factory.mktemp("labelled")

    def label(precision: str) -> Path:
        path = folder / precision
        if not path.exists():
            copy_of(find_bundle("mini").path, path)
            edit_manifest(path, lambda document: _relabel(document, precision))
        return path

    return label


def _relabel(document: Any, precision: str) -> None:
    document["precision"] = precision
    for graph in document["graphs"].values():
        graph["precision"] = precision


@pytest.fixture
def retrained(labelled: Labelled, tmp_path: Path) -> Path:
    """A bundle of the miniature in fp16, exported from other weights."""
    path = copy_of(labelled("fp16"), tmp_path / "retrained")
    edit_manifest(path, lambda document: document["sources"].update(unet="0" * 64))
    return path


def ladder(bundle: Path | str, *against: Path, backend: str = "ort-cpu") -> list[str]:
    return [each.precision for each in plan_runs(find_bundle(bundle), against, backend)]


def test_the_built_in_bundle_is_the_first_rung_of_a_bundle_of_the_miniature(labelled: Labelled) -> None:
    first, judged = plan_runs(find_bundle(labelled("fp16")), (), "ort-cpu")
    assert first.bundle.path == find_bundle("mini").path
    assert judged.bundle.path == labelled("fp16")
    assert (first.precision, judged.precision) == ("fp32", "fp16")


def test_an_fp32_bundle_is_a_ladder_of_its_own() -> None:
    assert ladder("mini") == ["fp32"]


@pytest.mark.slow
def test_the_more_exact_come_first_in_whatever_order_they_are_named(labelled: Labelled) -> None:
    assert ladder(labelled("int8"), labelled("fp16")) == ["fp32", "fp16", "int8"]
    assert ladder(labelled("int8"), labelled("fp16"), labelled("fp32")) == ["fp32", "fp16", "int8"]
    assert ladder(labelled("fp8"), labelled("int8"), labelled("bf16"), labelled("fp16")) == [
        "fp32",
        "fp16",
        "bf16",
        "int8",
        "fp8",
    ]


def test_an_fp32_bundle_that_is_named_replaces_the_built_in_one(labelled: Labelled) -> None:
    first, _ = plan_runs(find_bundle(labelled("fp16")), [labelled("fp32")], "ort-cpu")
    assert first.bundle.path == labelled("fp32")


def test_a_bundle_of_other_weights_has_no_built_in_rung(retrained: Path) -> None:
    assert ladder(retrained) == ["fp16"]


def test_a_bundle_of_another_model_has_no_built_in_rung(labelled: Labelled, tmp_path: Path) -> None:
    path = copy_of(labelled("fp16"), tmp_path / "other")
    edit_manifest(path, lambda document: document["spec"].update(name="refdiff"))
    assert ladder(path) == ["fp16"]
    with pytest.raises(
        InputError, match=r"fp32 is of mini, .*other of refdiff; --against takes bundles that"
    ):
        ladder(path, labelled("fp32"))


def test_without_the_built_in_bundle_the_ladder_is_shorter(labelled: Labelled) -> None:
    bundle = find_bundle(labelled("fp16"))

    def absent(path: Path | str) -> Bundle:
        raise BundleError("the built-in bundle is not in this installation")

    runs = plan_runs(bundle, (), "ort-cpu", find_built_in=absent)
    assert [each.precision for each in runs] == ["fp16"]


def test_a_bundle_of_other_weights_is_refused(labelled: Labelled, retrained: Path) -> None:
    with pytest.raises(InputError, match=r"retrained is of mini, .*int8 of mini with other weights or sizes"):
        ladder(labelled("int8"), retrained)


@pytest.mark.parametrize(
    ("judged", "sibling"), [("fp16", "fp16"), ("fp16", "int8"), ("fp16", "bf16"), ("fp32", "fp16")]
)
def test_a_bundle_that_is_not_more_exact_is_refused(labelled: Labelled, judged: str, sibling: str) -> None:
    said = rf"is in {sibling}, .* in {judged}; --against takes more exact bundles"
    with pytest.raises(InputError, match=said):
        ladder(labelled(judged), labelled(sibling))


def test_the_bundle_itself_is_refused_as_its_sibling(labelled: Labelled) -> None:
    with pytest.raises(InputError, match="more exact bundles than the one that is checked"):
        ladder(labelled("int8"), labelled("int8"))


def test_two_of_one_precision_are_refused(labelled: Labelled, tmp_path: Path) -> None:
    twin = copy_of(labelled("fp16"), tmp_path / "twin")
    with pytest.raises(InputError, match="are both in fp16, expected one bundle for each precision"):
        ladder(labelled("int8"), labelled("fp16"), twin)


def test_a_sibling_that_is_not_there_is_named(labelled: Labelled, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere does not exist"):
        ladder(labelled("int8"), tmp_path / "nowhere")


def test_an_unknown_precision_is_refused(labelled: Labelled, tmp_path: Path) -> None:
    path = copy_of(labelled("fp16"), tmp_path / "int2")
    edit_manifest(path, lambda document: _relabel(document, "int2"))
    with pytest.raises(InputError, match="precision is 'int2', expected one of fp32"):
        ladder(path, labelled("fp32"))


@pytest.mark.slow
def test_on_a_cpu_half_precision_is_rounded_and_fp32_is_not(labelled: Labelled) -> None:
    pytest.importorskip("onnx_ir")
    for precision in ("fp16", "bf16", "int8", "fp8"):
        first, judged = plan_runs(find_bundle(labelled(precision)), (), "auto")
        assert (first.backend, first.note) == ("ort-cpu", None)
        assert judged.backend == ROUNDED
        assert judged.note is not None
        assert "every half-precision result rounded" in judged.note


def test_a_bundle_with_one_graph_in_half_precision_is_rounded(labelled: Labelled, tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    path = copy_of(labelled("fp32"), tmp_path / "mixed")
    edit_manifest(path, lambda document: document["graphs"]["clip_text"].update(precision="fp16"))
    assert plan_run(find_bundle(path), "auto").backend == ROUNDED


def test_a_back_end_that_was_asked_for_is_taken_and_its_shortcoming_is_said(labelled: Labelled) -> None:
    judged = plan_run(find_bundle(labelled("fp16")), "ort-cpu")
    assert judged.backend == "ort-cpu"
    assert judged.note == (
        "this CPU's kernels compute half precision in float32; --backend ort-rounded executes it"
    )
    assert plan_run(find_bundle("mini"), "ort-cpu").note is None


def test_without_the_package_that_rounds_the_report_says_what_was_computed(labelled: Labelled) -> None:
    def without(bundle: Bundle, *, backend: str) -> object:
        if backend == ROUNDED:
            raise MissingDependencyError("back-end ort-rounded needs onnx_ir, which is not installed")
        return open_sessions(bundle, backend=backend)

    judged = plan_run(find_bundle(labelled("fp16")), "auto", open_sessions=without)
    assert judged.backend == "ort-cpu"
    assert judged.note is not None
    assert judged.note.startswith("computed in float32, not as a device will: back-end ort-rounded needs")
    with pytest.raises(MissingDependencyError):
        plan_run(find_bundle(labelled("fp16")), ROUNDED, open_sessions=without)


def test_an_unknown_back_end_is_refused(labelled: Labelled) -> None:
    with pytest.raises(InputError, match="unknown back-end 'abacus'"):
        ladder(labelled("fp16"), backend="abacus")
