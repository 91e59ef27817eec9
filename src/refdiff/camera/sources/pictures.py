"""Reads a folder of images, and draws the test pattern and the rendered scenes, in the reader process."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from refdiff.camera.pattern import draw_pattern
from refdiff.camera.sources.fault import FaultError
from refdiff.camera.sources.sink import FrameSink, Pace
from refdiff.contracts.session import ImageArray
from refdiff.errors import InputError

_SUFFIXES = frozenset(
    [
        ".avif",
        ".bmp",
        ".gif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    ]
)


def read_pictures(request: dict[str, Any], sink: FrameSink) -> None:
    """Read a folder, or draw frames, until they end.

    Args:
        request: as of `reader.py`.
        sink: takes the frames.

    Raises:
        FaultError: the folder holds no images.
        ReadingDone: the frames that were wanted have been read.
    """
    pace, rate = Pace(real=request["pace"] == "real"), request["rate"] or 30.0
    if request["kind"] == "folder":
        paths = natural_order(Path(request["location"]))
        sink.opened(f"{len(paths)} images")
        for number, path in _passes(paths, loop=request["loop"]):
            _hand_over(sink, pace, number / rate, partial(_decode, path))
    else:
        draw, description = _renderer(request)
        sink.opened(f"{description}, {rate:g} frames/s")
        for number in count():
            _hand_over(sink, pace, number / rate, partial(draw, number))


def _hand_over(sink: FrameSink, pace: Pace, pts_s: float, make: Callable[[], ImageArray | None]) -> None:
    if sink.skipped():
        return
    pixels = make()
    if pixels is None:
        sink.drop("damaged")
        return
    pace.wait(pts_s)
    sink.publish(pixels, captured_s=time.monotonic(), wall_s=time.time(), pts_s=pts_s)


def natural_order(folder: Path) -> list[Path]:
    """Return the images of a folder with numbers in order of their values: frame2 before frame10.

    Raises:
        FaultError: there are none.
    """
    found = [path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file()]
    if not found:
        raise FaultError("input", f"got a folder without images ({', '.join(sorted(_SUFFIXES))})")
    return sorted(found, key=lambda path: (_key(path.name), path.name))


def _key(name: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part[0].isdecimal() else (1, 0, part.lower()) for part in parts]


def _passes(names: list[Path], *, loop: bool) -> Iterator[tuple[int, Path]]:
    for start in count(0, len(names)) if loop else (0,):
        yield from enumerate(names, start)


def _decode(path: Path) -> ImageArray | None:
    """Return an image's pixels; None if it cannot be read."""
    from refdiff.runtime.image import read_image

    try:
        return read_image(path)
    except (InputError, OSError):
        return None


def _renderer(request: dict[str, Any]) -> tuple[Callable[[int], ImageArray], str]:
    """Return what draws the frame of a number, and one line about it."""
    width, height = request["size"] or (640, 480)
    if request["kind"] == "pattern":
        return lambda number: draw_pattern(number, (height, width)), f"a test pattern, {width}x{height} px"
    from refdiff.data.moving_scenes import MovingScene

    scene = MovingScene(int(request["location"]), size_yx=(height, width))
    phrases = ", ".join(repr(phrase.phrase) for phrase in scene.phrases)
    return lambda number: scene.frame(number).pixels, f"rendered scenes, {width}x{height} px, with {phrases}"
