"""The Python model, run from the repository's own model.py with a stand-in for Triton's module."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("tritonclient")
pytest.importorskip("onnxruntime")

from google.protobuf import json_format, text_format

from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import BackendOptions
from refdiff.serve.tensors import OUTPUT_OF, OUTPUTS
from refdiff.serve.triton import write_repository
from tests.support import fake_triton
from tests.support.fake_triton import InferenceRequest, TritonError, TritonModelException, args_of
from tests.support.http_attacks import picture
from tests.support.triton_config import model_config_pb2

ALL = tuple(OUTPUT_OF)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    output = tmp_path_factory.mktemp("triton") / "models"
    write_repository("mini", output, backend=BackendOptions(name="ort-cpu", threads=1))
    return output


@pytest.fixture(scope="module")
def python_model(repository):
    """The class in model.py, imported as Triton does."""
    sys.modules["triton_python_backend_utils"] = fake_triton
    try:
        spec = importlib.util.spec_from_file_location("model", repository / "refdiff" / "1" / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        del sys.modules["triton_python_backend_utils"]
    return module.TritonPythonModel


def config_of(repository, **parameters):
    text = (repository / "refdiff" / "config.pbtxt").read_text(encoding="utf-8")
    config = json_format.MessageToDict(
        text_format.Parse(text, model_config_pb2().ModelConfig()), preserving_proto_field_name=True
    )
    for name, value in parameters.items():
        config["parameters"][name] = {"string_value": value}
    return config


@pytest.fixture(scope="module")
def model(repository, python_model):
    found = python_model()
    found.initialize(args_of(config_of(repository), repository / "refdiff" / "1"))
    yield found
    found.finalize()


def texts(*elements):
    return np.array(elements, np.object_)


@pytest.mark.slow
def test_the_golden_answer_comes_out_of_the_repository(model):
    recorded = find_bundle("mini").golden_answer()
    phrases = texts(recorded.phrase.encode(), b"the zebra")
    request = InferenceRequest({"pixels": np.array(recorded.image), "phrases": phrases}, ALL)
    (response,) = model.execute([request])
    assert not response.has_error()
    arrays = {each.name(): each.as_numpy() for each in response.output_tensors()}
    assert [(name, array.dtype) for name, array in arrays.items()] == [
        (each.name, each.dtype) for each in OUTPUTS
    ]
    assert (arrays["masks"][0] == recorded.mask).mean() > 0.99
    assert b"miniature" in arrays["cautions"][0]


@pytest.mark.slow
def test_a_wrong_request_fails_alone_and_only_asked_outputs_are_returned(model):
    recorded = find_bundle("mini").golden_answer()
    good = InferenceRequest(
        {
            "pixels": np.array(recorded.image),
            "phrases": texts(recorded.phrase.encode()),
            "min_confidence": np.array([1], np.float32),
        },
        ["reason", "matched"],
    )
    wrong = InferenceRequest({"image": texts(b"no image"), "phrases": texts(b"the mug")}, ALL)
    empty = InferenceRequest({"phrases": texts(b"the mug")}, ALL)
    cancelled = InferenceRequest({"image": texts(picture()), "phrases": texts(b"x")}, ALL, lambda: True)
    responses = model.execute([wrong, empty, cancelled, good])
    codes = [each.error().code() for each in responses[:3]]
    assert codes == [TritonError.INVALID_ARG, TritonError.INVALID_ARG, TritonError.CANCELLED]
    assert [each.name() for each in responses[3].output_tensors()] == ["matched", "reason"]
    assert b"1.00" in responses[3].output_tensors()[1].as_numpy()[0]


@pytest.mark.slow
def test_a_request_is_cancelled_between_two_graphs(model):
    answers = iter([False, False, True])
    recorded = find_bundle("mini").golden_answer()
    request = InferenceRequest(
        {"pixels": np.array(recorded.image), "phrases": texts(b"the mug")}, ALL, lambda: next(answers)
    )
    (response,) = model.execute([request])
    assert response.error().code() == TritonError.CANCELLED
    assert next(answers, None) is None


@pytest.mark.slow
def test_an_unexpected_failure_is_an_error_without_its_reason(model):
    def fail():
        raise RuntimeError("secret path")

    request = InferenceRequest({"image": texts(picture()), "phrases": texts(b"x")}, ALL, fail)
    (response,) = model.execute([request])
    assert response.error().code() == TritonError.INTERNAL
    assert "secret" not in response.error().message()
    assert "secret path" in fake_triton.Logger.lines[-1]


def test_another_bundle_in_the_place_of_the_recorded_one_is_not_loaded(repository, python_model):
    folder = repository / "refdiff" / "1"
    with pytest.raises(TritonModelException, match="another bundle than the repository"):
        python_model().initialize(args_of(config_of(repository, sha256="0" * 64), folder))
    with pytest.raises(TritonModelException, match="does not exist"):
        python_model().initialize(args_of(config_of(repository, bundle="/no/such/bundle"), folder))


def test_a_configuration_of_other_tensors_is_not_loaded(repository, python_model):
    config = config_of(repository)
    config["output"] = config["output"][1:]
    with pytest.raises(TritonModelException, match="write it again"):
        python_model().initialize(args_of(config, repository / "refdiff" / "1"))


@pytest.mark.slow
def test_the_model_needs_neither_the_server_s_packages_nor_those_of_training():
    code = "import json, sys, refdiff.serve.triton_model; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded.isdisjoint({"starlette", "uvicorn", "prometheus_client", "torch", "onnx", "av", "cv2"})
