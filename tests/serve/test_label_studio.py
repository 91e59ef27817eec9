"""The ML backend of Label Studio over a fake segmenter; `benchmarks/label_studio.py` asks a real one."""

import base64
import io
import logging

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from refdiff.errors import InputError
from refdiff.runtime.masks import to_brush_rle
from refdiff.serve.app import AppOptions
from refdiff.serve.guard import GuardOptions
from refdiff.serve.label_studio import label_for, phrase_in, read_label_config
from refdiff.serve.label_studio_image import LabelStudioOptions
from tests.support.http_server import running, segmentation
from tests.support.label_studio import CONFIG, label_studio, predict_request, setup_request

TOKEN = "0123456789abcdef0123"


def file_of(shade=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 12, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def uri_of(shade=0):
    return "data:image/png;base64," + base64.b64encode(file_of(shade)).decode()


@pytest.fixture(scope="module")
def server():
    with running() as found:
        yield found


def test_the_backend_is_up_and_has_one_version(server):
    status, _, answer = server.ask("/health")
    assert (status, answer["status"]) == (200, "UP")
    version = server.ask("/setup", setup_request())[2]["model_version"]
    assert server.ask("/versions")[2] == {"versions": [version]}
    assert server.ask("/webhook", {"action": "ANNOTATION_CREATED", "annotation": {}})[0] == 201


def test_a_phrase_becomes_a_region_of_the_brush(server):
    status, _, answer = server.ask("/predict", predict_request(uri_of(), "the cup"))
    assert status == 200
    (found,) = answer["results"]
    (region,) = found["result"]
    assert (region["from_name"], region["to_name"], region["type"]) == ("mask", "image", "brushlabels")
    assert (region["original_width"], region["original_height"]) == (12, 8)
    assert region["value"]["brushlabels"] == ["cup"]
    assert region["value"]["rle"] == list(to_brush_rle(segmentation("the cup").mask))
    assert found["score"] == region["score"] == 0.75
    assert found["model_version"] == answer["model_version"]


def test_opening_a_task_encodes_its_image_so_that_the_phrase_finds_it_encoded(server):
    before = server.segmenter.graphs.count("encode")
    status, _, answer = server.ask("/predict", predict_request(uri_of(1)))
    assert (status, answer["results"]) == (
        200,
        [[]],
    )  # an empty prediction would keep Label Studio from asking again
    server.ask("/predict", predict_request(uri_of(1), "the cup"))
    server.ask("/predict", predict_request(uri_of(1), "the mug"))
    assert server.segmenter.graphs.count("encode") == before + 1


def test_opening_a_task_does_not_wait_for_the_engines():
    with running() as server:
        server.segmenter.go.clear()
        status, _, answer = server.ask("/predict", predict_request(uri_of(2)))
        assert (status, answer["results"]) == (200, [[]])
        server.segmenter.go.set()


def test_a_full_queue_refuses_phrases_and_lets_tasks_open():
    with running(most_waiting=1) as server:
        server.segmenter.go.clear()
        server.ask("/predict", predict_request(uri_of(3)))
        assert server.segmenter.entered.wait(20)
        assert server.ask("/predict", predict_request(uri_of(4)))[0] == 200
        status, headers, answer = server.ask("/predict", predict_request(uri_of(5), "the cup"))
        assert (status, answer["error"]["type"]) == (429, "queue_full")
        assert headers["retry-after"]
        server.segmenter.go.set()


def test_many_tasks_at_once_have_no_predictions_and_encode_nothing(server):
    before = list(server.segmenter.graphs)
    assert server.ask("/predict", predict_request(uri_of(6), tasks=3))[2]["results"] == [[], [], []]
    assert server.segmenter.graphs == before


def test_an_answer_that_is_not_certain_enough_has_no_region(server):
    config = CONFIG.replace('name="mask"', 'name="mask" model_score_threshold="0.9"')
    answer = server.ask("/predict", predict_request(uri_of(), "the cup", config=config))[2]
    assert answer["results"][0]["result"] == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("<TextArea", "<Text"), 'no TextArea with toName="image"'),
        (('name="prompt" toName="image"', 'name="prompt" toName="other"'), "no TextArea with toName"),
        (("BrushLabels", "RectangleLabels"), "no BrushLabels"),
        (("<Image", "<Video"), "no Image"),
        (('Image name="image"', 'Image name="picture"'), 'toName="image" and the image is called "picture"'),
        (('value="$image"', 'value="image"'), 'expected the key of the data, such as "$image"'),
        (('<Label value="cup"/><Label value="red mug"/>', ""), "no Label with a value"),
        (('<BrushLabels name="mask"', "<BrushLabels"), "BrushLabels without a name"),
        (("</View>\n  <Brush", "<Brush"), "no XML"),
        (('name="mask"', 'name="mask" model_score_threshold="much"'), "model_score_threshold 'much'"),
    ],
)
def test_a_labeling_interface_that_does_not_fit_is_explained_and_logged(server, caplog, change, complaint):
    config = CONFIG.replace(*change)
    assert config != CONFIG
    with caplog.at_level(logging.WARNING, "refdiff.serve"):
        status, _, answer = server.ask("/setup", setup_request(config))
    assert status == 400
    assert complaint in answer["error"]["message"]
    assert complaint in caplog.text
    assert server.ask("/predict", predict_request(uri_of(), "the cup", config=config))[0] == 400


@pytest.mark.parametrize(
    "config",
    [
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><View>&b;</View>',
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><View>&a;</View>',
        "<View>" * 50_000 + "</View>" * 50_000,
        "<View a='" + "a" * 100_000,
        "<View>" + "<a/>" * 100_000 + "</View>",
        "",
        None,
        {"View": 1},
        "\x00",
        "\ud800",
    ],
)
def test_hostile_labeling_interfaces_are_refused(config):
    with pytest.raises(InputError):
        read_label_config(config)


def test_the_interface_of_the_message_fits():
    with pytest.raises(InputError) as caught:
        read_label_config("<View/>")
    example = str(caught.value).partition("such as ")[2]
    assert read_label_config(example).labels == ("mug",)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"label_config": CONFIG}, "tasks"),
        ({"label_config": CONFIG, "tasks": "x"}, "tasks"),
        ({"label_config": CONFIG, "tasks": [3]}, "tasks"),
        ({"label_config": CONFIG, "tasks": [{}]}, "'image', which Image names"),
        ({"label_config": CONFIG, "tasks": [{"data": {"image": 3}}]}, "the task has no image"),
        ({"tasks": [{}]}, "no labeling interface"),
        ([], "expected an object"),
        (b"{", "not JSON"),
        (predict_request("data:image/png;base64,AAAA", "the cup"), "is not an image that can be read"),
        (predict_request("/etc/passwd", "the cup"), "--label-studio-url"),
        (predict_request("http://127.0.0.1:1/data/upload/x.png"), "--label-studio-url"),
    ],
)
def test_requests_that_cannot_be_answered_say_why(server, body, complaint):
    status, _, answer = server.ask("/predict", body)
    assert status == 400
    assert complaint in answer["error"]["message"]


@pytest.mark.parametrize(
    "context",
    [
        None,
        3,
        [],
        {},
        {"result": None},
        {"result": [3]},
        {"result": [{"from_name": "prompt"}]},
        {"result": [{"from_name": "prompt", "value": {"text": []}}]},
        {"result": [{"from_name": "prompt", "value": {"text": [" "]}}]},
        {"result": [{"from_name": "prompt", "value": {"text": [3]}}]},
        {"result": [{"from_name": "other", "value": {"text": ["the cup"]}}]},
    ],
)
def test_a_context_without_a_phrase_has_none(context):
    assert phrase_in(context, "prompt") is None


def test_the_newest_phrase_counts():
    old = {"from_name": "prompt", "value": {"text": ["the mug", "the cup"]}}
    new = {"from_name": "prompt", "value": {"text": "the ball"}}
    assert phrase_in({"result": [old]}, "prompt") == "the cup"
    assert (
        phrase_in({"result": [old, new, {"from_name": "mask", "value": {"rle": []}}]}, "prompt") == "the ball"
    )


def test_the_context_of_label_studios_own_page_is_read():
    """Sent by the page of label-studio 1.23.2 when a third text was added."""
    context = {
        "result": [
            {
                "value": {"text": ["the book", "the book", "the star"]},
                "id": "t2pM1JYbLK",
                "from_name": "prompt",
                "to_name": "image",
                "type": "textarea",
                "origin": "manual",
            }
        ]
    }
    assert phrase_in(context, "prompt") == "the star"


@pytest.mark.parametrize(
    ("phrase", "root", "label"),
    [
        ("Red Mug", "mug", "red mug"),
        ("the cup near the red mug", "cup", "cup"),
        ("the big red mug on the left", "mug", "red mug"),
        ("the red mug near the blue mug", "mug", "red mug"),
        ("the plate", "plate", None),
        ("the plate under the red mug", "plate", None),
        ("the mug's handle", "handle", None),
        ("the cupboard", "cupboard", None),
        ("the mug", "mug", None),
        ("cup", "cup", "cup"),
        ("the cup", "the cup", None),
    ],
)
def test_a_label_is_the_phrase_or_holds_its_head_word_and_otherwise_there_is_none(phrase, root, label):
    labels = ["first", "cup", "near mug", "red mug", "blue mug", "..."]
    assert label_for(phrase, root, labels) == label


def test_the_only_label_of_an_interface_is_used_for_every_phrase():
    assert (
        label_for("the plate", "plate", ["thing"])
        == label_for("the plate", "plate", ["thing"] * 2)
        == "thing"
    )


def test_a_region_that_fits_no_label_has_none_and_label_studio_reads_its_mask(server):
    brush = pytest.importorskip("label_studio_converter.brush")
    config = CONFIG.replace('value="red mug"', 'value="plate"')
    answer = server.ask("/predict", predict_request(uri_of(), "the mug", config=config))[2]
    (region,) = answer["results"][0]["result"]
    assert "brushlabels" not in region["value"]
    assert region["type"] == "brushlabels"
    flat = {**region, **region["value"]}  # as its converter flattens regions
    (name,) = layers = brush.decode_from_annotation("mask", [flat])
    assert name == "mask-no_label-0"
    assert np.array_equal(layers[name] > 0, segmentation("the mug").mask)


def test_images_are_fetched_from_the_label_studio_of_the_operator_and_from_nowhere_else():
    with label_studio() as studio:
        studio.files["/data/upload/1/a.png"] = file_of(7)
        studio.authorization = "Token secret"
        options = AppOptions(label_studio=LabelStudioOptions(url=studio.url, token="secret"))
        with running(options) as server:
            status, _, answer = server.ask("/predict", predict_request("/data/upload/1/a.png", "the cup"))
            assert (status, len(answer["results"][0]["result"])) == (200, 1)
            status, _, answer = server.ask(
                "/predict", predict_request("http://127.0.0.1:1/data/upload/a.png")
            )
            assert (status, answer["error"]["type"]) == (400, "invalid_request")
            server.ask("/setup", setup_request())
    assert {path for path, _ in studio.asked} == {"/data/upload/1/a.png"}


def test_basic_auth_carries_the_token_as_its_password():
    def basic(text):
        return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}.items()

    with running(AppOptions(guard=GuardOptions(token=TOKEN))) as server:
        for path, body in (("/setup", setup_request()), ("/predict", predict_request(uri_of(), "the cup"))):
            assert server.ask(path, body, headers=basic(f"label-studio:{TOKEN}"))[0] == 200
            for wrong in (f"{TOKEN}:", f":{TOKEN}x", TOKEN, "", ":"):
                assert server.ask(path, body, headers=basic(wrong))[0] == 401
            for header in ("Basic", "Basic %%%", "Basic é", f"Basic {TOKEN}"):
                head = {"authorization": header.encode("latin-1").decode("latin-1")}.items()
                assert server.ask(path, body, headers=head)[0] == 401
        assert server.ask("/health")[0] == 401
        assert server.ask("/health", headers=basic(f"x:{TOKEN}"))[0] == 200
