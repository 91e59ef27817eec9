"""The Triton repository: its files and configurations, and that it appears whole or not at all."""

import json

import pytest

pytest.importorskip("tritonclient")

from google.protobuf import text_format

from refdiff.cli import main
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.options import BackendOptions, RunOptions
from refdiff.errors import BundleError, EngineError, InputError
from refdiff.serve.tensors import INPUTS, OUTPUTS
from refdiff.serve.triton import RepositoryOptions, write_repository
from tests.support.plan_bundle import CONTRACT, GRAPHS, write_bundle, write_plan
from tests.support.triton_config import model_config_pb2


def config_of(folder):
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2().ModelConfig())


def tensors_of(fields):
    names = model_config_pb2().DataType
    return [(each.name, names.Name(each.data_type), list(each.dims)) for each in fields]


@pytest.fixture
def small(tmp_path):
    return write_bundle(tmp_path / "bundle")


def test_the_model_is_configured_by_the_contract(small, tmp_path):
    report = write_repository(
        small.path,
        tmp_path / "models",
        options=RunOptions(variant="official", mode="gen"),
        backend=BackendOptions(name="ort-cpu", threads=3),
    )
    folder = tmp_path / "models" / "refdiff"
    config = config_of(folder)
    assert (config.name, config.backend, config.platform, config.max_batch_size) == (
        "refdiff",
        "python",
        "",
        0,
    )
    for fields, contract in ((config.input, INPUTS), (config.output, OUTPUTS)):
        expected = [each.config() for each in contract]
        assert tensors_of(fields) == [(each["name"], each["data_type"], each["dims"]) for each in expected]
    assert [each.optional for each in config.input] == [each.optional for each in INPUTS]
    kinds = model_config_pb2().ModelInstanceGroup
    assert [(each.kind, each.count) for each in config.instance_group] == [(kinds.KIND_MODEL, 1)]
    assert {name: each.string_value for name, each in config.parameters.items()} == {
        "bundle": "bundle",
        "sha256": small.manifest.sha256,
        "variant": "official",
        "mode": "gen",
        "allow_random_weights": "false",
        "backend": "ort-cpu",
        "threads": "3",
    }
    compile((folder / "1" / "model.py").read_text(encoding="utf-8"), "model.py", "exec")
    assert open_bundle(folder / "1" / "bundle").manifest.sha256 == small.manifest.sha256
    assert report.to_json()["models"][0]["backend"] == "python"


def test_plans_of_the_bundle_are_left_out_of_the_copy(small, tmp_path):
    write_plan(small, "unet")
    write_repository(small.path, tmp_path / "models")
    assert not (tmp_path / "models" / "refdiff" / "1" / "bundle" / "engines").exists()


def test_a_bundle_that_the_server_has_is_named_and_not_copied(small, tmp_path):
    place = '/srv/große "bundles"/one'
    write_repository(small.path, tmp_path / "models", layout=RepositoryOptions(bundle_at=place))
    folder = tmp_path / "models" / "refdiff"
    assert config_of(folder).parameters["bundle"].string_value == place
    assert [each.name for each in (folder / "1").iterdir()] == ["model.py"]
    for wrong in ("bundles/one", "/a\nb"):
        with pytest.raises(InputError, match="absolute"):
            write_repository(small.path, tmp_path / "other", layout=RepositoryOptions(bundle_at=wrong))


def test_each_graph_is_a_model_with_its_plan_and_the_contract_s_tensors(small, tmp_path):
    plans = {graph: write_plan(small, graph) for graph in GRAPHS}
    layout = RepositoryOptions(graphs=True, server_version="10.3.0")
    report = write_repository(small.path, tmp_path / "models", layout=layout)
    assert {each.name for each in report.models} == {"refdiff", *(f"refdiff_{graph}" for graph in GRAPHS)}
    for graph in GRAPHS:
        folder = tmp_path / "models" / f"refdiff_{graph}"
        assert (folder / "1" / "model.plan").read_bytes() == plans[graph].read_bytes()
        config = config_of(folder)
        assert (config.name, config.platform, config.max_batch_size) == (folder.name, "tensorrt_plan", 0)
        for fields, contract in (
            (config.input, CONTRACT[graph].inputs),
            (config.output, CONTRACT[graph].outputs),
        ):
            assert tensors_of(fields) == [
                (
                    each.name,
                    {"float32": "TYPE_FP32", "int32": "TYPE_INT32"}[each.dtype],
                    [size if isinstance(size, int) else -1 for size in each.shape],
                )
                for each in contract
            ]
    (group,) = config_of(tmp_path / "models" / "refdiff_sam_decoder").instance_group
    assert list(group.profile) == ["0", "1"]
    (group,) = config_of(tmp_path / "models" / "refdiff_sam_encoder").instance_group
    assert list(group.profile) == []


def test_plans_need_a_server_and_a_server_plans(small, tmp_path):
    for layout in (
        RepositoryOptions(graphs=True),
        RepositoryOptions(server_version="10.3.0"),
        RepositoryOptions(compute_capability="8.6"),
    ):
        with pytest.raises(InputError, match="--server-version"):
            write_repository(small.path, tmp_path / "models", layout=layout)


def test_a_plan_that_does_not_fit_leaves_nothing_behind(small, tmp_path):
    write_plan(small, "unet")
    layout = RepositoryOptions(graphs=True, server_version="10.13.3.9")
    with pytest.raises(EngineError):
        write_repository(small.path, tmp_path / "models", layout=layout)
    assert [each.name for each in tmp_path.iterdir()] == ["bundle"]


def test_a_repository_is_replaced_only_if_it_is_ours_and_that_is_allowed(small, tmp_path):
    output, replace = tmp_path / "models", RepositoryOptions(overwrite=True)
    write_repository(small.path, output)
    with pytest.raises(InputError, match="--overwrite"):
        write_repository(small.path, output)
    write_repository(small.path, output, options=RunOptions(mode="gen"), layout=replace)
    assert config_of(output / "refdiff").parameters["mode"].string_value == "gen"
    (output / "resnet").mkdir()
    with pytest.raises(InputError, match="not modified"):
        write_repository(small.path, output, layout=replace)
    assert sorted(each.name for each in output.iterdir()) == ["refdiff", "resnet"]


@pytest.mark.parametrize("make", ["file", "empty", "link", "foreign"])
def test_anything_else_is_never_replaced(small, tmp_path, make):
    output = tmp_path / "models"
    if make == "file":
        output.write_text("mine")
    elif make == "link":
        output.symlink_to(tmp_path / "bundle")
    else:
        (output if make == "empty" else output / "refdiff").mkdir(parents=True)
    with pytest.raises(InputError, match="not modified"):
        write_repository(small.path, output, layout=RepositoryOptions(overwrite=True))
    assert output.exists()


def test_another_bundle_than_expected_and_unknown_options_are_refused(small, tmp_path):
    with pytest.raises(BundleError, match="another bundle"):
        write_repository(small.path, tmp_path / "models", options=RunOptions(expect="0" * 64))
    with pytest.raises(InputError, match="unknown variant"):
        write_repository(small.path, tmp_path / "models", options=RunOptions(variant="x"))
    with pytest.raises(InputError, match="unknown back-end"):
        write_repository(small.path, tmp_path / "models", backend=BackendOptions(name="x"))


def test_random_weights_are_written_only_if_that_is_allowed_and_recorded(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", random_seed=7)
    with pytest.raises(InputError, match="random weights"):
        write_repository(bundle.path, tmp_path / "models")
    write_repository(bundle.path, tmp_path / "models", options=RunOptions(allow_random_weights=True))
    assert (
        config_of(tmp_path / "models" / "refdiff").parameters["allow_random_weights"].string_value == "true"
    )


def test_the_verb_prints_what_it_wrote(small, tmp_path, capsys):
    output = tmp_path / "models"
    assert main(["triton", str(small.path), "-o", str(output), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["path"] == str(output)
    assert [each["name"] for each in document["models"]] == ["refdiff"]
    assert main(["triton", str(small.path), "-o", str(output), "--overwrite"]) == 0
    assert "tritonserver --model-repository" in capsys.readouterr().out.replace("\n", " ")
    assert main(["triton", str(small.path), "-o", str(output), "--graphs", "--server-version", "25.10"]) == 2
