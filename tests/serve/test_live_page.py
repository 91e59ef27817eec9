"""The page's live camera in a real browser, whose camera plays a rendered clip with known masks."""

import io
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("onnxruntime")
pytest.importorskip("cv2")
pytest.importorskip("websockets")
pytest.importorskip("playwright.sync_api")

from refdiff.contracts.options import BackendOptions
from refdiff.data.moving_scenes import MovingScene
from refdiff.serve.worker import opener
from tests.support.browser import MARKS, api, chromium, opened
from tests.support.http_server import running

pytestmark = [pytest.mark.slow, *MARKS]

PHRASE = "the green book"
FRAMES = 40


@pytest.fixture(scope="module")
def clip():
    """Frames, and the true mask of what the phrase names in each; the browser plays them to and fro."""
    scene = MovingScene(7, "slow", cut=False)
    target = next(each.target for each in scene.phrases if each.phrase == PHRASE)
    frames = [scene.frame(number) for number in range(FRAMES)]
    return [each.pixels for each in frames], [each.masks[target] for each in frames]


@pytest.fixture(scope="module")
def camera(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("camera") / "clip.mjpeg"
    with path.open("wb") as file:
        for pixels in [*clip[0], *clip[0][-2:0:-1]]:
            Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return path


@pytest.fixture(scope="module")
def browser(camera):
    switches = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    with chromium(*switches, f"--use-file-for-fake-video-capture={camera}") as found:
        yield found


@pytest.fixture(scope="module")
def server():
    with running(open_segmenter=opener("mini", backend=BackendOptions(threads=1))) as found:
        yield found


@pytest.fixture
def page(browser, server):
    with opened(browser, server, width=1000, height=800) as found:
        found.click("#go-live")
        api.expect(found.locator("#live-note")).to_have_text("Type what to follow")
        yield found


# What is on show, read in one task of the browser: the picture, and the filled outline of the mask.
SHOWN = """() => {
  const read = (canvas) => canvas.toDataURL("image/png").split(",")[1];
  const picture = document.querySelector("#live-canvas");
  const path = document.querySelector("#live-masks path");
  if (picture.hidden || !path) return null;
  const mask = document.createElement("canvas");
  [mask.width, mask.height] = [picture.width, picture.height];
  mask.getContext("2d").fill(new Path2D(path.getAttribute("d")), "evenodd");
  const row = document.querySelector("#targets li");
  return { picture: read(picture), mask: read(mask), state: row.dataset.state };
}"""


def pixels_of(base64):
    return np.asarray(Image.open(io.BytesIO(b64decode(base64))))


def test_the_mask_on_show_is_that_of_the_picture_on_show(page, clip):
    page.fill("#phrase", PHRASE)
    page.wait_for_selector("#targets [data-state=tracked]")
    numbers, overlaps = set(), []
    while len(numbers) < 5:
        shown = page.wait_for_function(SHOWN).json_value()
        picture = pixels_of(shown["picture"])[..., :3].astype(int)
        number = int(np.argmin([np.abs(picture - each).mean() for each in clip[0]]))
        if number in numbers:
            continue
        numbers.add(number)
        mask, truth = pixels_of(shown["mask"])[..., 3] > 127, clip[1][number]
        overlaps.append((mask & truth).sum() / (mask | truth).sum())
    assert min(overlaps) > 0.75
    assert "ms behind" in page.inner_text("#live-rate")
    assert page.inner_text("#targets .numbers").endswith("%")


def test_phrases_are_added_changed_and_removed_while_it_runs(page):
    page.fill("#phrase", PHRASE)
    page.press("#phrase", "Enter")
    page.wait_for_selector("#live-masks path")
    page.fill("#phrase", "the red plate")
    api.expect(page.locator("#targets li")).to_have_count(2)
    api.expect(page.locator("#live-masks .tag")).to_have_count(2)
    page.click(f"[aria-label='Remove {PHRASE}']")
    api.expect(page.locator("#targets .text")).to_have_text(["the red plate"])
    page.fill("#phrase", "x" * 300)
    page.wait_for_selector("#targets li")
    page.fill("#phrase", "")
    api.expect(page.locator("#targets li")).to_have_count(0)
    api.expect(page.locator("#live-canvas")).to_be_hidden()
    page.click("#end-live")
    api.expect(page.locator("#go-live")).to_be_focused()
    assert page.evaluate("document.querySelector('#live-video').srcObject") is None


def test_no_mask_stays_on_show_when_the_server_is_silent_or_gone(page, server):
    page.fill("#phrase", PHRASE)
    page.wait_for_selector("#live-masks path")
    page.evaluate("() => { window.send = WebSocket.prototype.send; WebSocket.prototype.send = () => {}; }")
    api.expect(page.locator("#live-note")).to_have_text("No answer from the server")
    assert page.locator("#live-masks path").count() == 0
    assert page.inner_text("#targets .badge") == "no answer"
    page.evaluate("() => { WebSocket.prototype.send = window.send; }")
    server.status.draining = True
    page.wait_for_selector("#status.bad")
    assert "stopping" in page.inner_text("#status")
    assert page.locator("#live-masks path").count() == 0
    server.status.draining = False
    page.wait_for_selector("#live-masks path")


def test_a_second_page_waits_for_the_first(browser, page, server):
    page.fill("#phrase", PHRASE)
    page.wait_for_selector("#live-masks path")
    other = browser.new_context().new_page()
    other.goto(server.url)
    other.click("#go-live")
    other.fill("#phrase", PHRASE)
    api.expect(other.locator("#live-note")).to_contain_text("other live session")
    page.click("#end-live")
    other.wait_for_selector("#live-masks path")
    other.context.close()


def test_the_camera_takes_a_picture_to_ask_about(page):
    page.click("#end-live")
    page.click("#webcam")
    api.expect(page.locator("#shutter")).to_be_visible()
    page.wait_for_function("() => document.querySelector('#video').videoWidth")
    page.click("#shoot")
    page.wait_for_selector("#view:not([hidden])")
    assert page.evaluate("document.querySelector('#video').srcObject") is None
    page.fill("#phrase", PHRASE)
    api.expect(page.locator("#verdict")).to_contain_text("sure")


def test_the_live_page_has_no_serious_accessibility_findings_in_both_themes_and_with_an_error(page, server):
    axe = pytest.importorskip("axe_core_python.sync_playwright").Axe()
    page.fill("#phrase", PHRASE)
    page.wait_for_selector("#live-masks path")
    serious = []

    def look(state):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            serious.extend(
                (state, scheme, each["id"], [node["target"] for node in each["nodes"]])
                for each in axe.run(page)["violations"]
                if each["impact"] in ("serious", "critical")
            )

    look("running")
    server.status.draining = True
    page.wait_for_selector("#status.bad")
    look("stopping")
    server.status.draining = False
    assert serious == []
