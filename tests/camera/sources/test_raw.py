"""Raw frames of commands, and JetPack's pipeline with stand-ins for GStreamer's two programs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from refdiff.camera.pattern import draw_pattern, read_pattern_number
from refdiff.camera.sources.raw import PIXEL_FORMATS, RawFormat, csi_pipeline, to_rgb
from refdiff.camera.sources.source import SourceOptions
from tests.camera.sources.test_video import read_here

FAKE_LAUNCH = """#!{python}
import re, sys
print("GST_ARGUS: Creating output stream", flush=True)
with open(int(re.search("fd=([0-9]+)", " ".join(sys.argv))[1]), "wb") as out:
    for number in range(3):
        out.write(bytes([number, 50, 100, 0]) * (4 * 2))
sys.exit(1)
"""

FAKE_INSPECT = """#!/bin/sh
test "$2" != "{missing}"
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *, missing: str = "") -> None:
    for name, text in (("gst-launch-1.0", FAKE_LAUNCH), ("gst-inspect-1.0", FAKE_INSPECT)):
        (folder / name).write_text(text.format(python=sys.executable, missing=missing))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
def test_every_pixel_format_gives_the_colors_that_were_written(pixel_format: str) -> None:
    av = pytest.importorskip("av")
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:32, :64], picture[32:, 64:] = (200, 40, 90), (10, 220, 60)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixel_format)
    if pixel_format == "gray":
        picture = frame.to_ndarray()[..., None].repeat(3, axis=2)
    data = b"".join(bytes(plane) for plane in frame.planes)  # 128 px need no padding
    layout = RawFormat((128, 64), pixel_format)
    assert len(data) == layout.frame_bytes
    got = to_rgb(data, layout)
    assert got.shape == (64, 128, 3)
    for y, x in ((10, 10), (50, 100), (10, 100)):
        assert np.abs(got[y, x].astype(int) - picture[y, x]).max() <= 6


def test_a_command_that_ends_is_named_with_its_exit_code() -> None:
    program = "import sys; sys.stdout.buffer.write(bytes(24) * 2 + bytes(5)); sys.exit(7)"
    sink, fault = read_here(f'cmd:{sys.executable} -c "{program}"', SourceOptions(size_xy=(4, 2)))
    assert sink.sizes == [(2, 4)] * 2
    assert sink.dropped == {"incomplete": 1}
    assert fault is not None
    assert fault.kind == "closed"
    assert "exit code 7" in fault.reason


def test_a_program_that_is_not_there_is_named() -> None:
    _, fault = read_here("cmd:no-such-program --x", SourceOptions(size_xy=(4, 2)))
    assert fault is not None
    assert (fault.kind, fault.reason) == ("not_found", "there is no program no-such-program")


def test_a_csi_camera_is_read_apart_from_what_its_pipeline_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    sink, fault = read_here("csi://0", SourceOptions(size_xy=(4, 2)))
    assert sink.sizes == [(2, 4)] * 3
    assert sink.pixels is not None
    assert sink.pixels[0, 0].tolist() == [100, 50, 2]
    assert fault is not None
    assert "gst-launch-1.0 ended with exit code 1" in fault.reason


def test_what_jetpack_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, missing="nvvidconv")
    _, fault = read_here("csi://0")
    assert fault is not None
    assert fault.kind == "missing"
    assert "no element nvvidconv; JetPack's package nvidia-l4t-gstreamer" in fault.reason
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    _, fault = read_here("csi://0")
    assert fault is not None
    assert "gst-launch-1.0 and gst-inspect-1.0 not found" in fault.reason


def test_the_pipeline_asks_for_the_sensor_the_size_and_the_rate() -> None:
    words = csi_pipeline(1, (1920, 1080), 29.97, descriptor=9)
    text = " ".join(words)
    assert (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),format=NV12,width=1920,height=1080" in text
    )
    assert "framerate=29970/1000" in text
    assert text.endswith("fdsink fd=9 sync=false")


@pytest.mark.parametrize("number", [0, 1, 255, 4097, 2**24 - 1])
def test_the_number_of_a_pattern_is_in_its_pixels_also_when_they_are_noisy(number: int) -> None:
    pixels = draw_pattern(number, (48, 96))
    noise = np.random.default_rng(number).integers(-60, 60, pixels.shape)
    noisy = np.clip(pixels.astype(int) + noise, 0, 255).astype(np.uint8)
    assert read_pattern_number(noisy) == number
    assert read_pattern_number(255 - pixels) is None
    assert read_pattern_number(np.roll(pixels, 6, axis=1)) in (None, number)
