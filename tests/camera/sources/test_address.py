"""The grammar of sources, and texts without credentials."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.camera.sources.address import SOURCE_FORMS, find_secrets, parse_source, redact, source_help
from refdiff.errors import InputError


@pytest.mark.parametrize(
    ("text", "kind", "location"),
    [
        ("0", "device", "/dev/video0"),
        (" 12 ", "device", "/dev/video12"),
        ("/dev/v4l/by-id/usb-cam", "device", "/dev/v4l/by-id/usb-cam"),
        ("rtsp://10.0.0.2/main", "stream", "rtsp://10.0.0.2/main"),
        ("HTTP://cam/mjpeg", "stream", "HTTP://cam/mjpeg"),
        ("udp://239.0.0.1:1234", "stream", "udp://239.0.0.1:1234"),
        ("csi://1", "csi", "1"),
        ("cmd:cat 'a b'", "command", "cat 'a b'"),
        ("pattern", "pattern", ""),
        ("scenes", "scenes", "0"),
        ("scenes:7", "scenes", "7"),
    ],
)
def test_each_form_of_a_source_is_recognized(text: str, kind: str, location: str) -> None:
    address = parse_source(text)
    assert (address.kind, address.location) == (kind, location)


def test_files_folders_and_recordings_end_and_streams_do_not(tmp_path: Path) -> None:
    clip = tmp_path / "a:b 1.mp4"
    clip.touch()
    assert parse_source(str(clip)).kind == "file"
    assert parse_source(clip.as_uri()).location == str(clip)
    assert parse_source(str(tmp_path)).kind == "folder"
    assert parse_source(str(clip)).recorded
    assert parse_source("https://host/clip.MP4?token=1").recorded
    assert not parse_source("https://host/mjpeg").recorded
    assert not parse_source("0").recorded


@pytest.mark.parametrize(
    "text",
    ["", "missing.mp4", "gopher://host/x", "concat:a|b", "csi://left", "csi://", "cmd:", "cmd:'open", "rtsp://",
     "scenes:x", "-1", "no\0pe", "x" * 5000],
)  # fmt: skip
def test_a_source_of_no_form_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(InputError, match=r"source .*: got .*; expected one of: 0, /dev/video0; rtsp://"):
        parse_source(text)


def test_the_help_has_a_line_for_each_form() -> None:
    assert len(source_help().splitlines()) == len(SOURCE_FORMS)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://admin:secret@cam/1", "rtsp://***@cam/1"),
        ("rtsp://admin:p@ss/wo:rd@cam/1", "rtsp://***@cam/1"),
        ("http://cam/video?channel=2&token=abc&x=1", "http://cam/video?channel=2&token=***&x=***"),
        ("http://cam/user=admin&password=abc&channel=1", "http://cam/user=***&password=***&channel=1"),
        ("cmd:cam --password=abc --user me", "cmd:cam --password=*** --user me"),
        ("Authorization: Basic YWJj", "Authorization: ***"),
        ("rtspsrc location=rtsp://u:p@h user-pw=abc !", "rtspsrc location=rtsp://***@h user-pw=*** !"),
        ("http://cam/plain", "http://cam/plain"),
    ],
)  # fmt: skip
def test_credentials_are_masked_wherever_they_stand(text: str, shown: str) -> None:
    assert redact(text) == shown


_WORD = st.text("abcXYZ019!$%:@/+._~-", min_size=3, max_size=12)


@settings(max_examples=50)
@given(_WORD.filter(lambda word: ":" not in word), _WORD, _WORD)
def test_no_part_of_an_address_with_credentials_is_in_what_is_shown(
    user: str, password: str, token: str
) -> None:
    user, password, token = f"u#{user}", f"p#{password}", f"t-{token}"
    text = f"rtsp://{user}:{password}@camera.example/1?channel=1&key={token}"
    address = parse_source(text)
    shown = repr(address) + address.name + redact(f"cannot open {text}: {password}", address.secrets)
    assert not any(secret in shown for secret in (user, password, token))
    assert "camera.example" in address.name or "@" in token


def test_secrets_are_known_in_each_spelling_and_longest_first() -> None:
    secrets = find_secrets("rtsp://me:p%40ss@cam/?token=a%20b")
    assert {"p%40ss", "p@ss", "a%20b", "a b"} <= set(secrets)
    assert list(secrets) == sorted(secrets, key=len, reverse=True)
    assert "me" not in secrets
