"""Which plan may be loaded where: its key, its metadata, and everything that is refused."""

import dataclasses
import json
import os
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.contracts.atomic_io import hash_file
from refdiff.engines.trt.device import Device
from refdiff.engines.trt.metadata import (
    AMPERE_PLUS,
    PORTABLE,
    PlanIdentity,
    PlanMetadata,
    graph_sha256,
    hash_document,
    metadata_path,
    read_metadata,
    recipe_sha256,
)
from refdiff.engines.trt.plan_store import PlanFiles, reusable
from refdiff.engines.trt.shapes import ShapeRange
from refdiff.engines.trt.trust import is_trusted
from refdiff.engines.trt.validation import check_plan, check_validity
from refdiff.errors import EngineError, InputError
from tests.support.fake_builder import fake_flavour, fake_rtx, fake_tensorrt
from tests.support.fuzzing import fuzz
from tests.support.plans import BUNDLE, MINIATURE, identity, put

ORIN = Device(name="Orin", compute_capability="8.7", memory_bytes=8 * 10**9, driver_cuda="12.6")
TENSORRT = fake_flavour(fake_tensorrt(version="10.3.0"))
RTX = fake_flavour(fake_rtx())


def write_plan(folder, *, content=b"a plan", **changes):
    who = identity(**changes)
    files = PlanFiles(folder, who.graph)
    put(files, content, who)
    return files.plan


def test_the_same_inputs_have_the_same_key():
    assert identity().key == identity().key


OTHER_RANGE = ShapeRange(least=(1,), usual=(1,), most=(4,))


@pytest.mark.parametrize(
    "changes",
    [
        {"graph": "unet_taps"},
        {"onnx_sha256": "0" * 64},
        {"precision": "fp16"},
        {"recipe_sha256": "0" * 64},
        {"shapes": ({"latent": OTHER_RANGE},)},
        {"flavour": "tensorrt-rtx"},
        {"version": "10.3.1"},
        {"targets": ("8.6",)},
        {"targets": ("8.6", "8.7")},
        {"flags": {"refit": True, "workspace_bytes": None}},
        {"flags": {"refit": False, "workspace_bytes": 4096}},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_part_of_an_identity_changes_the_key(changes):
    assert identity(**changes).key != identity().key


@pytest.mark.parametrize(
    ("flavour", "targets", "folder"),
    [
        ("tensorrt", ("8.7",), "tensorrt-sm87"),
        ("tensorrt", (AMPERE_PLUS,), "tensorrt-ampere-plus"),
        ("tensorrt-rtx", (PORTABLE,), "tensorrt-rtx-portable"),
        ("tensorrt-rtx", ("8.6", "12.0"), "tensorrt-rtx-sm86-sm120"),
    ],
)
def test_the_folder_names_flavour_and_device(flavour, targets, folder):
    assert identity(flavour=flavour, targets=targets).device_key == folder


def test_a_changed_weight_file_changes_the_graph_s_hash():
    manifest = MINIATURE.manifest
    data = manifest.graphs["unet"].files[1]
    changed = dataclasses.replace(manifest.files[data], sha256="f" * 64)
    other = dataclasses.replace(manifest, files={**manifest.files, data: changed})
    assert graph_sha256(other, "unet") != graph_sha256(manifest, "unet")
    assert graph_sha256(other, "clip_text") == graph_sha256(manifest, "clip_text")
    assert recipe_sha256(manifest, "unet") is None


def test_a_metadata_reads_back_as_it_was_written(tmp_path):
    plan = write_plan(tmp_path)
    metadata = read_metadata(plan)
    assert metadata.identity == identity()
    assert metadata.plan_sha256 == hash_file(plan)
    assert metadata.to_text() == metadata_path(plan).read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda document: document.pop("flags"), "flags.* is missing"),
        (lambda document: document.update(format=1), "got format 1, expected 3"),
        (lambda document: document.update(extra=1), "extra"),
        (lambda document: document.update(targets=[]), "targets is empty"),
        (lambda document: document.update(targets="8.7"), "expected a list"),
        (lambda document: document.update(plan_bytes=-1), "expected a whole number"),
        (lambda document: document.update(plan_bytes=True), "expected a whole number"),
        (lambda document: document.update(seconds="fast"), "expected a number"),
        (lambda document: document.update(version=None), "expected text"),
        (lambda document: document.update(shapes=[[]]), "not a plan's metadata"),
        (lambda document: document.update(shapes=[{"latent": {"min": [1]}}]), "is missing"),
        (lambda document: document.update(flags=[]), "expected an object"),
        (lambda document: document.update(version="10.4.0"), "was changed"),
        (lambda document: document.update(activation_bytes=0), "was changed"),
        (lambda document: document.pop("sha256"), "was changed|sha256.* is missing"),
    ],
)
def test_a_damaged_metadata_is_refused_with_the_cure(tmp_path, change, says):
    plan = write_plan(tmp_path)
    document = json.loads(metadata_path(plan).read_text())
    change(document)
    if not says.startswith("was changed"):
        document = sealed(document)
    metadata_path(plan).write_text(json.dumps(document))
    with pytest.raises(EngineError, match=f"(?s){says}.*refdiff build"):
        read_metadata(plan)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '"' * 2, "[" * 100_000])
def test_what_is_no_metadata_is_refused(tmp_path, text):
    plan = write_plan(tmp_path)
    metadata_path(plan).write_text(text)
    with pytest.raises(EngineError, match="refdiff build"):
        read_metadata(plan)


def sealed(document):
    """The document with the hash that its other fields have: what an attacker would write."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    return {**rest, "sha256": hash_document(rest)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(PlanMetadata.__dataclass_fields__ | PlanIdentity.__dataclass_fields__)), JSON)
def test_a_metadata_with_any_value_in_any_place_is_read_or_refused(field, value):
    whole = PlanMetadata(
        identity=identity(),
        plan_sha256="0" * 64,
        plan_bytes=1,
        activation_bytes=None,
        attention=(),
        seconds=0.0,
        built_on=None,
        refdiff_version="0",
    )
    document = sealed({**whole.to_json(), field: value})
    try:
        assert PlanMetadata.from_json(document, where="here").to_json() == document
    except EngineError as error:
        assert "refdiff build" in str(error)


def test_a_plan_that_fits_is_handed_its_metadata(tmp_path):
    plan = write_plan(tmp_path)
    assert check_plan(plan, MINIATURE, "unet", TENSORRT, ORIN).identity == identity()
    assert check_plan(plan, MINIATURE, "unet", TENSORRT, None, verify="size").plan_bytes == 6


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"onnx_sha256": "0" * 64}, "built from another unet.onnx"),
        ({"recipe_sha256": "0" * 64}, "another precision recipe"),
        ({"version": "10.4.0"}, r"built with tensorrt 10.4.0, this is 10.3.0"),
        ({"flavour": "tensorrt-rtx"}, "built with tensorrt-rtx, expected tensorrt"),
        ({"targets": ("8.6",)}, r"compute capability 8.6, this Orin is 8.7"),
        ({"targets": ("8.6", "8.9")}, r"8.6, 8.9, this Orin is 8.7"),
    ],
)
def test_a_plan_of_something_else_is_refused_by_name_with_the_command_that_fixes_it(tmp_path, changes, says):
    plan = write_plan(tmp_path, **changes)
    cure = f"refdiff build {BUNDLE} --flavour tensorrt --graph unet"
    with pytest.raises(EngineError, match=f"{says}.*{cure}"):
        check_plan(plan, MINIATURE, "unet", TENSORRT, ORIN)


def test_a_plan_under_the_name_of_another_graph_is_refused(tmp_path):
    plan = write_plan(tmp_path, graph="unet_taps").rename(tmp_path / "unet.plan")
    metadata_path(tmp_path / "unet_taps.plan").rename(metadata_path(plan))
    with pytest.raises(EngineError, match="is of graph unet_taps, expected unet"):
        check_plan(plan, MINIATURE, "unet", TENSORRT, ORIN)


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [("10.3.0", "10.9.0", True), ("10.9.0", "10.3.0", False), ("10.3.0", "11.0.0", False)],
)
def test_a_version_compatible_plan_runs_with_later_versions_of_its_major(tmp_path, built, here, fits):
    plan = write_plan(tmp_path, version=built, flags={"version_compatible": True})
    flavour = fake_flavour(fake_tensorrt(version=here))
    if fits:
        assert check_plan(plan, MINIATURE, "unet", flavour, ORIN)
    else:
        with pytest.raises(EngineError, match=f"built with tensorrt {built}, this is {here}"):
            check_plan(plan, MINIATURE, "unet", flavour, ORIN)


@pytest.mark.parametrize(
    ("capability", "fits"), [("7.5", False), ("8.0", True), ("8.9", True), ("12.0", True)]
)
def test_a_portable_plan_runs_from_ampere_on(tmp_path, capability, fits):
    plan = write_plan(tmp_path, targets=(PORTABLE,))
    device = dataclasses.replace(ORIN, compute_capability=capability)
    if fits:
        assert check_plan(plan, MINIATURE, "unet", TENSORRT, device)
    else:
        with pytest.raises(EngineError, match=r"portable, this Orin is 7\.5"):
            check_plan(plan, MINIATURE, "unet", TENSORRT, device)


@pytest.mark.parametrize(
    ("capability", "fits"), [("7.5", False), ("8.9", True), ("9.0", False), ("12.0", True)]
)
def test_a_portable_plan_runs_on_the_gpus_its_builder_knows_by_name(tmp_path, capability, fits):
    rtx = fake_flavour(fake_rtx(TENSORRT.version))
    plan = write_plan(tmp_path, targets=(PORTABLE,), flavour="tensorrt-rtx")
    device = dataclasses.replace(ORIN, compute_capability=capability)
    if fits:
        assert check_plan(plan, MINIATURE, "unet", rtx, device)
    else:
        with pytest.raises(EngineError, match=f"portable, this Orin is {capability}"):
            check_plan(plan, MINIATURE, "unet", rtx, device)


def test_a_plan_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(EngineError, match="does not exist; build it with: refdiff build"):
        check_plan(tmp_path / "unet.plan", MINIATURE, "unet", TENSORRT, ORIN)


def test_a_plan_without_a_metadata_is_refused(tmp_path):
    plan = write_plan(tmp_path)
    metadata_path(plan).unlink()
    with pytest.raises(EngineError, match="has no metadata"):
        check_plan(plan, MINIATURE, "unet", TENSORRT, ORIN)


def test_a_truncated_plan_is_refused_even_by_its_size(tmp_path):
    plan = write_plan(tmp_path, content=b"a plan of some length")
    plan.write_bytes(plan.read_bytes()[:10])
    with pytest.raises(EngineError, match=r"truncated.*got 10 bytes, expected 21"):
        check_plan(plan, MINIATURE, "unet", TENSORRT, ORIN, verify="size")


def test_a_file_that_is_not_the_plan_is_refused_by_its_hash(tmp_path):
    plan = write_plan(tmp_path)
    plan.write_bytes(b"planet")
    with pytest.raises(EngineError, match="got sha256"):
        check_plan(plan, MINIATURE, "unet", TENSORRT, ORIN)


VALIDITY = SimpleNamespace(VALID=0, SUBOPTIMAL=1, INVALID=2)
DIAGNOSTICS = SimpleNamespace(VERSION_MISMATCH=1, UNSUPPORTED_CC=2, OLD_CUDA_DRIVER=4)


def answering(validity, diagnostics):
    module = fake_rtx()
    module.EngineValidity = VALIDITY
    module.EngineInvalidityDiagnostics = type("Diagnostics", (), vars(DIAGNOSTICS))
    runtime = SimpleNamespace(get_engine_validity=lambda plan: (validity, diagnostics))
    return fake_flavour(module), runtime


def test_a_plan_that_came_with_a_bundle_is_not_loaded_until_it_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    files = PlanFiles(tmp_path, "unet")
    put(files, b"another one's p")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "ours"))
    with pytest.raises(EngineError, match=r"not built by this user .*; build it with: .* --trust-plans"):
        check_plan(files.plan, MINIATURE, "unet", TENSORRT, ORIN)
    assert reusable(files, identity()) is None
    assert reusable(files, identity(), trust=True) is not None
    assert check_plan(files.plan, MINIATURE, "unet", TENSORRT, ORIN).plan_bytes == len(b"another one's p")


def test_a_state_folder_that_cannot_be_written_is_named_with_its_variable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set XDG_STATE_HOME to a folder of this user"):
        put(PlanFiles(tmp_path, "unet"), b"plan")
    assert not is_trusted("0" * 64)


def test_a_fifo_in_the_place_of_metadata_or_plan_is_refused_without_waiting(tmp_path):
    plan = write_plan(tmp_path)
    for path, says in ((metadata_path(plan), "not a regular file"), (plan, "does not exist")):
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(EngineError, match=says):
            check_plan(plan, MINIATURE, "unet", TENSORRT, ORIN)
        path.unlink()
        write_plan(tmp_path)


@pytest.mark.slow
def test_any_metadata_file_is_read_or_refused(tmp_path):
    plan = write_plan(tmp_path)
    text = metadata_path(plan).read_bytes()

    def read(content):
        try:
            document = json.loads(content)
            document = sealed(document) if isinstance(document, dict) else document
        except (RecursionError, ValueError):
            return
        PlanMetadata.from_json(document, where="here")

    assert fuzz(read, [text], seed=5, allowed=EngineError).refused


def test_rtx_itself_is_queried(tmp_path):
    plan = tmp_path / "unet.plan"
    assert check_validity(*answering(VALIDITY.VALID, 0), b"plan", where=plan) is None
    warning = check_validity(*answering(VALIDITY.SUBOPTIMAL, 2), b"plan", where=plan)
    assert "not at its best (unsupported cc)" in str(warning)
    with pytest.raises(EngineError, match=r"version mismatch.*refdiff build BUNDLE --force"):
        check_validity(*answering(VALIDITY.INVALID, 1), b"plan", where=plan)
    with pytest.raises(EngineError, match="is there a GPU and a driver"):
        check_validity(*answering(VALIDITY.INVALID, 0), b"plan", where=plan)


def test_a_runtime_that_cannot_judge_is_not_asked(tmp_path):
    assert check_validity(TENSORRT, SimpleNamespace(), b"plan", where=tmp_path) is None
