"""The page in a real browser: asking, looking, saving, and what goes wrong; and its accessibility."""

import io
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("onnxruntime")
pytest.importorskip("playwright.sync_api")

from refdiff.contracts.options import BackendOptions
from refdiff.data.synthetic import demo_samples
from refdiff.serve.app import AppOptions
from refdiff.serve.live import LiveOptions
from refdiff.serve.worker import opener
from tests.support.browser import MARKS, api, chromium, opened
from tests.support.http_server import running

pytestmark = [pytest.mark.slow, *MARKS]


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server():
    with running(open_segmenter=opener("mini", backend=BackendOptions(threads=1))) as found:
        yield found


@pytest.fixture
def page(browser, server):
    with opened(browser, server) as found:
        yield found


def upload(page, pixels, name="photo.png"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": buffer.getvalue()})


def ask(page, phrase):
    with page.expect_response("**/v1/segment"):
        page.fill("#phrase", phrase)
    api.expect(page.locator("#status")).to_contain_text("Answered")
    api.expect(page.locator("#busy")).to_be_hidden()


def saved(page, what):
    with page.expect_download() as download:
        page.click(f"[data-save={what}]")
    return download.value.path().read_bytes()


def test_a_file_and_a_phrase_give_a_mask_that_can_be_saved(page):
    sample = demo_samples(1)[0]
    upload(page, sample.read())
    ask(page, sample.phrase)
    assert "sure" in page.inner_text("#verdict")
    assert page.locator("#masks path").count() == 1
    mask = np.asarray(Image.open(io.BytesIO(saved(page, "mask")))) > 0
    assert mask.shape == sample.truth.shape
    assert (mask & sample.truth).sum() / (mask | sample.truth).sum() > 0.5
    assert Image.open(io.BytesIO(saved(page, "overlay"))).size == mask.shape[::-1]
    document = json.loads(saved(page, "coco"))
    assert document["annotations"][0]["area"] == int(mask.sum())
    assert document["annotations"][0]["caption"] == sample.phrase


def test_an_answer_is_marked_as_one_to_an_earlier_text_until_the_new_one_is_there(page):
    upload(page, demo_samples(1)[0].read())
    ask(page, "the black mug")
    held = []
    page.route("**/v1/segment", lambda route: held.append(route))
    page.fill("#phrase", "the red ball")
    api.expect(page.locator("body")).to_have_class("pending")
    api.expect(page.locator("#busy")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('#answer')).opacity") == "0.45"
    while not held:
        page.wait_for_timeout(10)
    held[0].continue_()
    api.expect(page.locator("body")).not_to_have_class("pending")
    assert "not here" in page.inner_text("#verdict")


def test_all_questions_of_a_page_name_one_session_and_those_of_another_page_another(page, browser, server):
    def session_of(asking, phrase):
        with asking.expect_request("**/v1/segment") as found:
            asking.fill("#phrase", phrase)
        api.expect(asking.locator("#status")).to_contain_text("Answered")
        return found.value.headers["x-session-id"]

    upload(page, demo_samples(1)[0].read())
    first = session_of(page, "the black mug")
    assert session_of(page, "the red ball") == first
    with opened(browser, server) as other:
        upload(other, demo_samples(1)[0].read())
        assert session_of(other, "the black mug") != first


def test_what_is_not_there_is_said_and_drawn_as_doubtful(page):
    upload(page, demo_samples(2)[1].read())
    ask(page, "the red mug")
    assert "not here" in page.inner_text("#verdict")
    assert page.get_attribute("#masks path", "stroke-dasharray")


def test_kept_phrases_have_colors_of_their_own_and_can_be_removed(page):
    sample = demo_samples(2)[1]
    upload(page, sample.read())
    for phrase in (sample.phrase, "the blue ball"):
        ask(page, phrase)
        page.click("#keep")
        api.expect(page.locator("#phrase")).to_have_value("")
    colors = {each.get_attribute("stroke") for each in page.locator("#masks path").all()}
    assert len(colors) == page.locator("#phrases li").count() == 2
    page.click(f"[aria-label='Remove {sample.phrase}']")
    assert page.locator("#masks path").count() == 1


def test_the_slider_shows_the_heatmap_and_the_pointer_a_candidate(page):
    upload(page, demo_samples(2)[1].read())
    ask(page, "the blue ball")
    assert page.evaluate("document.querySelector('#heat').width") > 1
    page.focus("#mix")
    page.keyboard.press("End")
    assert page.evaluate("getComputedStyle(document.querySelector('#heat')).opacity") == "1"
    page.focus("#candidates")
    page.keyboard.press("ArrowRight")
    assert page.locator("#candidates [aria-selected=true]").count() == 1
    assert page.locator("#candidate .bar").count() == 5
    box = page.locator("#masks").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] * 0.69, box["y"] + box["height"] * 0.6)
    assert page.locator("#candidate .bar").count() == 5
    assert page.locator("#compare .bar").count() == 10


def test_a_scene_is_one_click(page):
    page.click("#scenes button")
    page.wait_for_selector("#answer:not([hidden])")
    assert page.input_value("#phrase") == demo_samples(1)[0].phrase


def test_a_file_that_is_no_image_is_said(page):
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    page.wait_for_selector("#status.bad")
    assert "not an image" in page.inner_text("#status")


def test_a_server_that_is_gone_is_said_and_asking_again_works(page):
    upload(page, demo_samples(1)[0].read())
    page.context.set_offline(True)
    page.fill("#phrase", "the mug")
    page.wait_for_selector("#status.bad")
    assert "cannot be reached" in page.inner_text("#status")
    page.context.set_offline(False)
    ask(page, "the black mug")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_no_serious_accessibility_findings(browser, server, scheme):
    axe = pytest.importorskip("axe_core_python.sync_playwright").Axe()
    with opened(browser, server, color_scheme=scheme) as page:
        page.wait_for_selector("#scenes img")
        first = axe.run(page)
        assert len(first["passes"]) > 10
        found = first["violations"]
        page.click("#scenes button")
        page.wait_for_selector("#answer:not([hidden])")
        page.focus("#candidates")
        page.keyboard.press("ArrowRight")
        found += axe.run(page)["violations"]
    serious = [
        (each["id"], [node["target"] for node in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_a_link_names_a_scene_and_phrases_and_nothing_else_of_it_is_used(browser, server):
    with opened(browser, server) as page:
        page.goto(f"{server.url}/#scene=scene-2&phrase=the+blue+ball&phrase=%3Cb%3Ethe+star%3C/b%3E")
        page.reload()
        page.wait_for_selector("#answer:not([hidden])")
        api.expect(page.locator("#phrases li")).to_have_count(1)
        api.expect(page.locator("#phrases .text")).to_have_text("the blue ball")
        assert page.input_value("#phrase") == "<b>the star</b>"
        assert page.locator("#share:visible, #link:visible").count() == 0


def test_a_server_that_allows_it_lets_the_page_share_the_overlay_and_a_link(browser, sharing):
    with opened(browser, sharing, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.click("#scenes button")
        page.click("#link")
        api.expect(page.locator("#status")).to_contain_text("link")
        link = page.evaluate("navigator.clipboard.readText()")
        assert link.startswith(f"{sharing.url}/#scene=scene-1&phrase=")
        page.click("#share")
        api.expect(page.locator("#status")).to_contain_text("overlay")
        kinds = page.evaluate("navigator.clipboard.read().then((items) => items[0].types)")
        assert kinds == ["image/png"]
        page.goto("about:blank")
        page.goto(link)
        page.wait_for_selector("#answer:not([hidden])")
        assert page.input_value("#phrase") == demo_samples(1)[0].phrase
        page.click("#another")
        upload(page, demo_samples(1)[0].read())
        ask(page, "the mug")
        api.expect(page.locator("#share")).to_be_visible()
        api.expect(page.locator("#link")).to_be_hidden()


@pytest.fixture
def sharing():
    options = AppOptions(share=True, live=LiveOptions(most_sessions=0))
    with running(options, open_segmenter=opener("mini", backend=BackendOptions(threads=1))) as found:
        yield found


def test_a_page_without_live_sessions_does_not_offer_them(browser, sharing):
    with opened(browser, sharing) as page:
        page.wait_for_selector("#scenes img")
        assert page.locator("#go-live:visible").count() == 0
