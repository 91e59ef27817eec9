"""Plans for a Triton server: its TensorRT, and which plans it loads."""

import shutil

import pytest

from refdiff.contracts.atomic_io import hash_file
from refdiff.engines.trt.metadata import metadata_path
from refdiff.errors import EngineError, InputError
from refdiff.serve.triton_plans import CONTAINERS, choose_plans, server_tensorrt, version_fits
from tests.support.plan_bundle import GRAPHS, write_bundle, write_plan


@pytest.mark.parametrize(
    ("server", "version"),
    [
        ("10.13.3.9", "10.13.3.9"),
        ("10.13.3.9+cuda13.0", "10.13.3.9"),
        ("10.13.3.9.post1", "10.13.3.9"),
        ("10.3.0", "10.3.0"),
        ("25.10-trtllm-python-py3", "10.11.0.33"),
        ("26.07-trtllm-python-py3", "10.14.1.48"),
    ],
)
def test_a_server_is_named_by_its_tensorrt_or_by_a_known_container(server, version):
    assert server_tensorrt(server) == version


@pytest.mark.parametrize("server", ["25.10", "25.10-py3", "31.01-trtllm-python-py3"])
def test_a_container_that_is_not_known_has_to_be_asked(server):
    with pytest.raises(InputError, match=r"docker run .*tritonserver:\d\d\.\d\d-.*py3 printenv TRT_VERSION"):
        server_tensorrt(server)


@pytest.mark.parametrize("server", ["", "latest", "25.10-", "10", "v10.13.3.9", "10.13.3.9.9.9"])
def test_anything_else_is_no_server(server):
    with pytest.raises(InputError, match="expected the tag"):
        server_tensorrt(server)


def test_every_known_version_has_four_numbers():
    assert all(version.count(".") == 3 for version in CONTAINERS.values())


@pytest.mark.parametrize(
    ("plan", "server", "compatible", "fits"),
    [
        ("10.13.3.9", "10.13.3.9", False, True),
        ("10.13.3.9", "10.13.3.10", False, False),
        ("8.6.1.6", "8.6.1.2", False, False),  # triton-inference-server/server#5975
        ("10.3.0", "10.3.0.30", False, True),
        ("10.3.0", "10.3.1.30", False, False),
        ("10.3.0", "10.13.3.9", True, True),
        ("10.13.3.9", "10.3.0", True, False),
        ("10.3.0", "11.0.0.1", True, False),
        ("unknown", "10.3.0", True, False),
    ],
)
def test_a_plan_loads_in_its_own_version_and_a_compatible_one_in_later_ones(plan, server, compatible, fits):
    assert version_fits(plan, server, compatible=compatible) is fits


@pytest.fixture
def planned(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    return bundle, {graph: write_plan(bundle, graph) for graph in GRAPHS}


def test_each_graph_has_its_verified_plan(planned):
    bundle, plans = planned
    assert {graph: each.path for graph, each in choose_plans(bundle, "10.3.0", None).items()} == plans


def test_a_graph_without_a_plan_is_named_with_the_command_that_builds_it(planned):
    bundle, plans = planned
    plans["sam_masks"].unlink()
    with pytest.raises(EngineError, match=r"no TensorRT plan of sam_masks; .*--graph sam_masks"):
        choose_plans(bundle, "10.3.0", None)
    with pytest.raises(EngineError, match=r"for 9\.0"):
        choose_plans(bundle, "10.3.0", "9.0")


def test_plans_of_another_version_are_refused(planned):
    with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0, the server has 10\.11\.0\.33"):
        choose_plans(planned[0], "25.10-trtllm-python-py3", None)


def test_a_version_compatible_plan_is_chosen_for_a_later_server(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", ["unet"])
    plan = write_plan(bundle, "unet", flags={"version_compatible": True})
    assert choose_plans(bundle, "10.13.3.9", None)["unet"].path == plan
    with pytest.raises(EngineError, match="refuses it"):
        choose_plans(bundle, "11.0.0.1", None)


def test_plans_for_several_gpus_need_a_choice(planned):
    bundle, plans = planned
    others = {graph: write_plan(bundle, graph, targets=("8.7",)) for graph in GRAPHS}
    with pytest.raises(InputError, match=r"8\.6, 8\.7; choose with --compute-capability"):
        choose_plans(bundle, "10.3.0", None)
    chosen = choose_plans(bundle, "10.3.0", "8.7")
    assert {graph: each.path for graph, each in chosen.items()} == others
    assert others.keys() == plans.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flavour": "tensorrt-rtx", "targets": ("portable",)}, "TensorRT-RTX are not loaded"),
        ({"flags": {"strip_weights": True}}, "has no weights"),
        ({"onnx_sha256": "0" * 64}, "another unet.onnx"),
    ],
)
def test_plans_that_triton_cannot_load_are_refused(tmp_path, changes, message):
    bundle = write_bundle(tmp_path / "bundle", ["unet"])
    write_plan(bundle, "unet", **changes)
    with pytest.raises(EngineError, match=message):
        choose_plans(bundle, "10.3.0", None)


def test_changed_and_foreign_plans_are_refused(planned, tmp_path, monkeypatch):
    bundle, plans = planned
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    with pytest.raises(EngineError, match="a plan is code"):
        choose_plans(bundle, "10.3.0", None)
    monkeypatch.undo()
    content = plans["unet"].read_bytes()
    plans["unet"].write_bytes(content[:-1] + b"!")
    with pytest.raises(EngineError, match="not the plan that was built"):
        choose_plans(bundle, "10.3.0", None)
    shutil.copyfile(plans["sam_masks"], plans["unet"])
    shutil.copyfile(metadata_path(plans["sam_masks"]), metadata_path(plans["unet"]))
    assert hash_file(plans["unet"]) == hash_file(plans["sam_masks"])
    with pytest.raises(EngineError, match="of graph sam_masks"):
        choose_plans(bundle, "10.3.0", None)
