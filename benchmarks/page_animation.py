"""Record the page in use, for the README: `python -m benchmarks.page_animation [FOLDER]`.

A browser drops a rendered image, types phrases, moves the slider, points at candidates, and follows phrases
with a camera that plays a rendered clip. Everything on show is what the built-in bundle answers. A picture is
taken for each letter and each step of the pointer, and shown for a fixed time; those of the live camera are
shown for as long as they took. The screenshots of docs/serving.md are taken too. Takes a minute on two cores;
needs Chromium.
"""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from refdiff.data.moving_scenes import MovingScene

ROOT = Path(__file__).parents[1]
VIEW = ViewportSize(width=1080, height=680)
SCALE = 1.5
LETTER_MS = 65
CLIP_FRAMES = 120
STILL, LIVE = 6, 7
"""Seeds of the clips that the image and the camera's pictures come from."""
LIVE_S = 5.0

CURSOR = """() => {
  const cursor = document.createElement("div");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  shape.setAttribute("viewBox", "0 0 16 22");
  const outline = 'd="M1 1v17l4.500-4 3 7 3-1.300-3-6.700H15z"';
  shape.innerHTML = `<path ${outline} fill="#16172a" stroke="#fff" stroke-width="1.500"/>`;
  Object.assign(shape.style, { width: "20px", display: "block" });
  Object.assign(cursor.style, { position: "fixed", left: "0", top: "0", zIndex: 9, pointerEvents: "none" });
  cursor.append(shape);
  document.body.append(cursor);
  addEventListener("mousemove", (event) => {
    cursor.style.transform = `translate(${event.clientX}px, ${event.clientY}px)`;
  }, true);
}"""

DROP = """(encoded) => {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "table.png", { type: "image/png" }));
  for (const name of ["dragover", "drop"]) {
    document.dispatchEvent(new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true }));
  }
}"""


class Film:
    """Pictures of a page with the time in ms that each is shown."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._shots = page.context.new_cdp_session(page)
        self.pictures: list[Image.Image] = []
        self.times_ms: list[int] = []
        self._at = 0.0, 0.0

    def shoot(self, ms: float) -> None:
        """Take a picture that is shown for some time."""
        clip = {"x": 0, "y": self.page.evaluate("scrollY"), **VIEW, "scale": SCALE}
        shot = self._shots.send(
            "Page.captureScreenshot", {"format": "png", "optimizeForSpeed": True, "clip": clip}
        )
        self.pictures.append(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB"))
        self.times_ms.append(round(ms))

    def move(self, x: float, y: float, steps: int = 7, ms: float = 55) -> None:
        """Move the pointer, slower at both ends."""
        from_x, from_y = self._at
        for step in range(1, steps + 1):
            share = step / steps
            share = share * share * (3 - 2 * share)
            self.page.mouse.move(from_x + share * (x - from_x), from_y + share * (y - from_y))
            self.shoot(ms)
        self._at = x, y

    def move_to(self, selector: str, across: float = 0.5, down: float = 0.5, **named: Any) -> None:
        """Move the pointer to a place of an element."""
        box = self.page.locator(selector).bounding_box()
        assert box is not None  # noqa: S101 - it is visible
        self.move(box["x"] + across * box["width"], box["y"] + down * box["height"], **named)

    def scroll(self, down: int, steps: int = 5) -> None:
        """Scroll the page."""
        for _ in range(steps):
            self.page.mouse.wheel(0, down / steps)
            self.page.wait_for_timeout(60)
            self.shoot(50)

    def click(self, selector: str, ms: float = 150) -> None:
        """Go to an element and click it."""
        self.move_to(selector)
        self.page.click(selector)
        self.shoot(ms)

    def type(self, text: str) -> None:
        """Type into the phrase's field."""
        for letter in text:
            self.page.keyboard.type(letter)
            self.shoot(LETTER_MS)

    def ask(self, text: str, ms: float) -> None:
        """Type a phrase and show its answer for some time."""
        with self.page.expect_response("**/v1/segment"):
            self.type(text)
        self.page.wait_for_selector("#busy", state="hidden")
        self.page.wait_for_timeout(200)
        self.shoot(ms)

    def save(self, path: Path) -> None:
        """Write an animated WebP file without an end."""
        first, *others = self.pictures
        options = {"duration": self.times_ms, "loop": 0, "quality": 54, "method": 4, "minimize_size": False}
        first.save(path, "WEBP", save_all=True, append_images=others, **options)


def play(film: Film) -> None:
    """Do what the README shows."""
    page = film.page
    film.move(540, 430, steps=3)
    film.shoot(600)
    film.move_to("#drop", 0.5, 0.3)
    buffer = io.BytesIO()
    Image.fromarray(MovingScene(STILL, "slow", cut=False).frame(0).pixels).save(buffer, "PNG")
    page.evaluate(DROP, base64.b64encode(buffer.getvalue()).decode())
    page.wait_for_selector("#view:not([hidden])")
    film.shoot(600)
    film.ask("the black block", 1100)
    page.keyboard.press("Enter")
    film.ask("the red mug", 1000)
    film.move_to("#mix", 0.02)
    page.mouse.down()
    film.move_to("#mix", 0.8, steps=10, ms=80)
    film.shoot(500)
    film.move_to("#mix", 0.0, steps=7)
    page.mouse.up()
    film.move_to("#masks", 0.27, 0.82, steps=5)
    film.shoot(350)
    film.scroll(300)
    for number in (3, 4):
        film.move_to(f"#candidates > span:nth-child({number})", steps=5)
        film.shoot(650)
    film.scroll(-300)
    film.move_to("#phrase", 0.8)
    page.fill("#phrase", "")
    film.ask("the green bottle", 1400)
    film.click("#another")
    film.click("#go-live", ms=500)
    page.wait_for_selector("#live:not([hidden])")
    page.wait_for_timeout(500)
    for text in ("the yellow bowl", "the red plate"):
        film.type(text)
        page.keyboard.press("Enter")
    watch(film, LIVE_S)


def watch(film: Film, seconds: float) -> None:
    """Take pictures one after the other; each is shown until the next was taken."""
    ends = time.monotonic() + seconds
    while (at := time.monotonic()) < ends:
        film.shoot(0)
        film.times_ms[-1] = round(1e3 * (time.monotonic() - at))
    film.times_ms[-1] = 1500


def screenshots(browser: Browser, address: str, folder: Path) -> None:
    """Take the pictures of the documentation."""
    for width, height, dark, live in (
        (1280, 860, False, False),
        (1920, 1080, True, False),
        (390, 844, False, False),
        (1280, 760, True, True),
    ):
        scheme: Literal["light", "dark"] = "dark" if dark else "light"
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.goto(address)
        if live:
            page.click("#go-live")
            for text in ("the green book", "the yellow bowl", "the red plate"):
                page.fill("#phrase", text)
                page.press("#phrase", "Enter")
            page.wait_for_selector("#targets li:nth-child(3)[data-state=tracked]")
            page.wait_for_timeout(1500)
        else:
            page.click("#scenes li:nth-child(4) button")
            page.wait_for_selector("#answer:not([hidden])")
            page.click("#keep")
            with page.expect_response("**/v1/segment"):
                page.fill("#phrase", "the orange mug")
            page.wait_for_selector("#busy", state="hidden")
            page.hover("#candidates > span:nth-child(2)")
            page.wait_for_timeout(300)
        path = folder / ("page-live.jpg" if live else f"page-{width}.jpg")
        page.screenshot(path=path, type="jpeg", quality=85, full_page=width == 390)
        page.close()


@contextmanager
def serving() -> Iterator[str]:
    """Serve the built-in bundle; give the address."""
    command = [sys.executable, "-m", "refdiff", "serve", "mini", "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603 - fixed
        assert process.stderr is not None  # noqa: S101 - it is a pipe
        try:
            lines = iter(process.stderr)
            yield next(line for line in lines if "serving at" in line).split()[-1]
        finally:
            process.terminate()
            process.stderr.read()


def write_clip(path: Path) -> None:
    """Write the camera's clip, to and fro, as one JPEG file after the other."""
    scene, files = MovingScene(LIVE, "slow", cut=False), []
    for number in range(CLIP_FRAMES):
        buffer = io.BytesIO()
        Image.fromarray(scene.frame(number).pixels).save(buffer, "JPEG", quality=92)
        files.append(buffer.getvalue())
    path.write_bytes(b"".join([*files, *files[-2:0:-1]]))


def main(folder: Path) -> None:
    """Write the animation and the screenshots."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as scratch, serving() as address, sync_playwright() as playwright:
        clip = Path(scratch) / "clip.mjpeg"
        write_clip(clip)
        switches = [
            "--no-sandbox",
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-video-capture={clip}",
        ]
        browser = playwright.chromium.launch(executable_path=chromium, args=switches)
        page = browser.new_page(viewport=VIEW, device_scale_factor=SCALE, color_scheme="light")
        page.goto(address)
        page.wait_for_selector("#scenes li:nth-child(6) img")
        page.evaluate(CURSOR)
        film = Film(page)
        play(film)
        page.close()
        screenshots(browser, address, folder)
        browser.close()
    film.save(folder / "page.webp")
    seconds, size = sum(film.times_ms) / 1e3, (folder / "page.webp").stat().st_size
    print(f"{len(film.pictures)} pictures, {seconds:.1f} s, {size / 1e6:.2f} MB")  # noqa: T201 - its output


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
