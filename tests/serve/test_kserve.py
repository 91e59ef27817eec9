"""KServe v2 over HTTP, asked by Triton's own client."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
triton = pytest.importorskip("tritonclient.http")

from google.protobuf import json_format

from refdiff.errors import EngineError
from refdiff.serve.app import AppOptions
from refdiff.serve.guard import GuardOptions
from refdiff.serve.request import image_id_of
from refdiff.serve.tensors import INPUTS, OUTPUTS
from tests.support.http_attacks import picture
from tests.support.http_server import running
from tests.support.triton_config import model_config_pb2

TOKEN = "0123456789abcdef"
PIXELS = np.full((8, 12, 3), 7, np.uint8)


@pytest.fixture(scope="module")
def server():
    with running() as found:
        yield found


@contextmanager
def client_of(server):
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=20) as client:
        yield client


@pytest.fixture
def client(server):
    with client_of(server) as found:
        yield found


def sent(name, array, *, binary):
    datatype = {"image": "BYTES", "phrases": "BYTES", "pixels": "UINT8", "min_confidence": "FP32"}[name]
    found = triton.InferInput(name, array.shape, datatype)
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def phrases(*texts, binary=True):
    return sent("phrases", np.array([each.encode() for each in texts], np.object_), binary=binary)


def image(file=None):
    return sent("image", np.array([file or picture()], np.object_), binary=True)


def body_of(*texts):
    return {
        "inputs": [
            {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 3], "data": [1, 2, 3]},
            {"name": "phrases", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)},
        ]
    }


def test_server_and_model_describe_themselves(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("refdiff")
    assert client.is_model_ready("refdiff", "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("refdiff", "2")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("refdiff", "1")
    assert metadata["inputs"] == [each.metadata() for each in INPUTS]
    assert metadata["outputs"] == [each.metadata() for each in OUTPUTS]


def test_the_configuration_is_one_of_triton_s(client):
    config = json_format.ParseDict(client.get_model_config("refdiff"), model_config_pb2().ModelConfig())
    assert [each.name for each in config.input] == [each.name for each in INPUTS]
    assert [list(each.dims) for each in config.output] == [list(each.shape) for each in OUTPUTS]


def test_a_file_and_phrases_are_answered_in_binary(client):
    result = client.infer("refdiff", [image(), phrases("the mug", "the cup")], request_id="seven")
    assert result.get_response()["id"] == "seven"
    masks = result.as_numpy("masks")
    assert (masks.shape, masks.dtype, masks.sum()) == ((2, 8, 12), np.bool_, 36)
    assert result.as_numpy("matched").tolist() == [True, True]
    assert result.as_numpy("confidence").tolist() == [0.75, 0.75]
    assert result.as_numpy("bbox").tolist() == [[3, 2, 6, 3]] * 2
    assert result.as_numpy("reason").tolist() == [b"", b""]
    assert result.as_numpy("cautions").tolist() == [b"test: a caution"] * 2


def test_pixels_are_answered_in_json(client):
    wanted = [triton.InferRequestedOutput(name, binary_data=False) for name in ("masks", "reason", "score")]
    inputs = [
        sent("pixels", PIXELS, binary=False),
        phrases("die große Tasse", binary=False),
        sent("min_confidence", np.array([0.9], np.float32), binary=False),
    ]
    result = client.infer("refdiff", inputs, model_version="1", outputs=wanted)
    assert [each["name"] for each in result.get_response()["outputs"]] == ["masks", "reason", "score"]
    assert not result.as_numpy("masks").any()
    assert "0.90" in result.as_numpy("reason")[0]
    assert result.as_numpy("score")[0] < -1e30
    assert result.as_numpy("confidence") is None


def test_both_forms_of_outputs_are_mixed_as_asked(client):
    wanted = [
        triton.InferRequestedOutput("masks", binary_data=True),
        triton.InferRequestedOutput("matched", binary_data=False),
    ]
    result = client.infer("refdiff", [image(), phrases("the mug")], outputs=wanted)
    assert result.as_numpy("masks").sum() == 18
    assert result.get_output("matched")["data"] == [True]


def test_an_image_is_encoded_once(server, client):
    pixels = sent("pixels", np.full((8, 12, 3), 99, np.uint8), binary=True)
    client.infer("refdiff", [pixels, phrases("the mug")])
    before = server.segmenter.graphs.count("encode")
    client.infer("refdiff", [pixels, phrases("the cup")])
    assert server.segmenter.graphs.count("encode") == before
    turned = np.full((12, 8, 3), 99, np.uint8)
    assert image_id_of(turned) != image_id_of(turned.reshape(8, 12, 3))


@pytest.mark.parametrize(
    ("inputs", "status", "message"),
    [
        ([phrases("the mug")], "400", "image"),
        ([image()], "400", "phrases"),
        ([image(), phrases("")], "400", "empty phrase"),
        ([image(b"no image"), phrases("the mug")], "400", "image"),
        ([image(), phrases(*["x"] * 65)], "400", "at most 64"),
    ],
)
def test_what_cannot_be_used_is_an_error_in_the_protocol_s_form(client, inputs, status, message):
    with pytest.raises(triton.InferenceServerException, match=message) as caught:
        client.infer("refdiff", inputs)
    assert caught.value.status() == status


def test_other_models_and_versions_are_not_found(client):
    for name, version in (("other", ""), ("refdiff", "2")):
        with pytest.raises(triton.InferenceServerException, match="expected") as caught:
            client.infer(name, [image(), phrases("the mug")], model_version=version)
        assert caught.value.status() == "404"


def test_a_compressed_body_is_refused(client):
    with pytest.raises(triton.InferenceServerException, match="uncompressed"):
        client.infer("refdiff", [image(), phrases("the mug")], request_compression_algorithm="gzip")


@pytest.mark.parametrize("path", ["/v2/nowhere", "/v2/models/refdiff/infer", "/v2/models/refdiff/versions/1"])
def test_errors_of_every_kind_are_texts(server, path):
    method = "GET" if path.endswith("infer") else "POST"
    status, _, answer = server.ask(path, method=method)
    assert status in (404, 405)
    assert isinstance(answer["error"], str)


def test_limits_token_and_host_apply():
    guard = GuardOptions(token=TOKEN, hosts=frozenset({"127.0.0.1"}), most_body_bytes=1000)
    with running(AppOptions(guard=guard)) as server, client_of(server) as client:
        assert client.is_server_ready()
        assert not client.is_model_ready("refdiff")
        with pytest.raises(triton.InferenceServerException, match="Authorization"):
            client.get_model_metadata("refdiff")
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert client.infer("refdiff", [image(), phrases("the mug")], headers=headers).as_numpy("masks").any()
        with pytest.raises(triton.InferenceServerException, match="1000 bytes"):
            client.infer("refdiff", [image(b"x" * 1000), phrases("the mug")], headers=headers)
        other = server.ask("/v2", headers={**headers, "host": "evil.example"}.items())
        assert (other[0], type(other[2]["error"])) == (421, str)


def test_a_full_queue_and_a_stop_are_errors_that_say_when_to_try_again():
    with running(AppOptions(request_seconds=20), most_waiting=1) as server:
        server.segmenter.go.clear()
        path, body, answers = "/v2/models/refdiff/infer", body_of("the mug"), []
        threads = [
            threading.Thread(target=lambda: answers.append(server.ask(path, body)[0])) for _ in range(2)
        ]
        threads[0].start()
        assert server.segmenter.entered.wait(20)
        threads[1].start()
        while not server.worker.full:
            threads[1].join(0.01)
        status, headers, answer = server.ask(path, body)
        assert (status, answer) == (429, {"error": "too many requests wait; try again later"})
        assert int(headers["retry-after"]) >= 1
        server.status.draining = True
        assert server.ask("/v2/health/ready")[0] == 503
        assert server.ask(path, body)[0] == 503
        server.segmenter.go.set()
        for thread in threads:
            thread.join(20)
        assert answers == [200, 200]


def test_a_request_that_takes_too_long_is_cancelled_between_two_graphs():
    with running(AppOptions(request_seconds=0.1)) as server:
        server.segmenter.go.clear()
        status, headers, answer = server.ask("/v2/models/refdiff/infer", body_of("the first", "the second"))
        assert (status, answer) == (504, {"error": "no answer within 0.1 s"})
        assert int(headers["retry-after"]) >= 1
        server.segmenter.go.set()
        assert server.ask("/v2/models/refdiff/infer", body_of("the third"))[0] == 200
        assert "the second" not in server.segmenter.graphs


def test_an_engine_that_fails_is_an_error_without_its_reason(server):
    server.segmenter.fails_with = EngineError("unet failed at /secret/path")
    try:
        status, _, answer = server.ask("/v2/models/refdiff/infer", body_of("the mug"))
    finally:
        server.segmenter.fails_with = None
    assert status == 500
    assert "secret" not in answer["error"]


@pytest.mark.slow
def test_the_miniature_gives_its_golden_answer_to_triton_s_client():
    pytest.importorskip("onnxruntime")
    from refdiff.contracts.inspection import find_bundle
    from refdiff.contracts.options import BackendOptions
    from refdiff.serve.worker import opener

    recorded = find_bundle("mini").golden_answer()
    opened = opener("mini", backend=BackendOptions(name="ort-cpu", threads=1))
    with running(open_segmenter=opened) as server, client_of(server) as client:
        pixels = sent("pixels", np.array(recorded.image), binary=True)
        result = client.infer("refdiff", [pixels, phrases(recorded.phrase)])
    (mask,) = result.as_numpy("masks")
    assert (mask == recorded.mask).mean() > 0.99
    assert b"miniature" in result.as_numpy("cautions")[0]
    assert mask.shape == recorded.mask.shape
