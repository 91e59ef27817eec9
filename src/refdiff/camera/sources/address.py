"""What a source's text means, and the same text without its credentials.

In: the text of `--source`. Out: a `SourceAddress`, whose `name` may be shown and whose `location` may not.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from refdiff.errors import InputError

SourceKind = Literal["device", "stream", "file", "folder", "csi", "command", "pattern", "scenes"]

STREAM_SCHEMES = ("rtsp", "rtsps", "http", "https", "tcp", "udp", "rtp", "rtmp", "rtmps", "srt")
"""Schemes that are given to FFmpeg; a build without one of them reports it when the source is opened."""

SOURCE_FORMS = (
    ("0, /dev/video0", "a USB camera, by number or device"),
    ("rtsp://HOST/PATH", "a network camera (also rtsps, rtmp, srt)"),
    ("http://HOST/PATH", "MJPEG, or another stream that FFmpeg reads (also https)"),
    ("tcp://HOST:PORT, udp://HOST:PORT", "MPEG-TS; tcp://0.0.0.0:PORT?listen waits for a sender"),
    ("FILE.mp4", "a video file"),
    ("FOLDER", "its images in natural order: frame2 before frame10"),
    ("csi://0", "a camera on a Jetson's CSI port, through JetPack's gst-launch-1.0"),
    ("cmd:COMMAND", "any command that writes raw frames to its stdout; needs the size and the pixel format"),
    ("pattern", "a test pattern with the frame number in its pixels"),
    ("scenes, scenes:SEED", "moving rendered scenes; no camera is needed"),
)
"""Form -> what it is, for the help of `--source` and the documentation."""

_RECORDED = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
"""Suffixes of an http(s) path that is a recording and ends, where a stream does not."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")

_HARMLESS = frozenset(
    [
        "channel",
        "camera",
        "fps",
        "framerate",
        "height",
        "listen",
        "overrun_nonfatal",
        "pkt_size",
        "fifo_size",
        "buffer_size",
        "profile",
        "resolution",
        "stream",
        "subtype",
        "timeout",
        "transport",
        "ttl",
        "width",
    ]
)
"""Query parameters whose values are shown."""

_USERINFO = re.compile(r"(?<=://)\S*@")
_PARAMETER = re.compile(r"([?&;][^=&;?#\s]*)=([^&;#\s]*)")
_SECRET_WORD = re.compile(
    r"((?:pass(?:word|wd|phrase)?|pwd|pw|token|secret|api-?key|auth(?:orization)?|user-?(?:id|name|pw)?)"
    r"[=:]\s*)(?!//)((?:basic|bearer)\s+)?[^\s&;,/'\"]+",
    re.IGNORECASE,
)
MASK = "***"


@dataclass(frozen=True, kw_only=True)
class SourceAddress:
    """What is opened, and how it is called."""

    kind: SourceKind
    location: str = field(repr=False)
    """What is given to the device, the decoder or the shell; may hold credentials."""
    name: str
    """The text as it was given, without credentials."""
    recorded: bool = False
    """Whether it ends and can be read again from its start."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """The texts that no message may hold, longest first."""
        return find_secrets(self.location)


def parse_source(text: str) -> SourceAddress:
    """Return what a source's text means.

    Raises:
        InputError: it has no known form, or names a file or folder that does not exist.
    """
    text = text.strip()
    if text == "pattern":
        return SourceAddress(kind="pattern", location="", name=text, recorded=True)
    if scenes := re.fullmatch(r"scenes(?::([0-9]{1,9}))?", text):
        return SourceAddress(kind="scenes", location=scenes[1] or "0", name=text, recorded=True)
    if text.isdecimal():
        return SourceAddress(kind="device", location=_device(int(text)), name=text)
    scheme = _SCHEME.match(text)
    if scheme and scheme[1].lower() in _PARSERS:
        return _PARSERS[scheme[1].lower()](text, text[scheme.end() :])
    if scheme and scheme[2]:
        raise _unknown(text, f"the scheme {scheme[1]}://")
    if text.startswith("/dev/"):
        return SourceAddress(kind="device", location=text, name=text)
    return _path(text, text)


def source_help() -> str:
    """Return one line for each form of a source, for a command's help."""
    width = max(len(form) for form, _ in SOURCE_FORMS)
    return "\n".join(f"{form:<{width}}  {meaning}" for form, meaning in SOURCE_FORMS)


def redact(text: str, secrets: tuple[str, ...] = ()) -> str:
    """Return a text without credentials.

    Args:
        text: any message, address or command.
        secrets: texts that are replaced wherever they stand, besides what looks like a credential.
    """
    text = _PARAMETER.sub(_shown_parameter, _USERINFO.sub(f"{MASK}@", text))
    text = _SECRET_WORD.sub(rf"\1{MASK}", text)
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def find_secrets(location: str) -> tuple[str, ...]:
    """Return the parts of an address that are credentials, in every spelling, longest first.

    A part of one or two characters is left out: replacing it would make messages unreadable, and where it
    stands in an address, the address's form shows it.
    """
    found: set[str] = set()
    for part in _USERINFO.findall(location):
        for end in re.finditer("@", part):  # a password may hold any sign, the separators too
            userinfo = part[: end.start()]
            found.update((userinfo, *userinfo.split(":", 1), *userinfo.rsplit(":", 1)))
    found.update(value for name, value in _PARAMETER.findall(location) if name[1:].lower() not in _HARMLESS)
    spellings = {spelling for part in found for spelling in (part, unquote(part), quote(part, safe=""))}
    return tuple(sorted((each for each in spellings if len(each) > 2), key=lambda each: (-len(each), each)))


def _shown_parameter(found: re.Match[str]) -> str:
    return found[0] if found[1][1:].lower() in _HARMLESS else f"{found[1]}={MASK}"


def _stream(text: str, rest: str) -> SourceAddress:
    if not rest.strip("/"):
        raise _unknown(text, "no host")
    path = Path(re.split("[?#]", rest, maxsplit=1)[0])
    recorded = text.lower().startswith("http") and path.suffix.lower() in _RECORDED
    return SourceAddress(kind="stream", location=text, name=redact(text), recorded=recorded)


def _csi(text: str, rest: str) -> SourceAddress:
    if not rest.isdecimal():
        raise _unknown(text, f"the sensor {rest!r}, expected its number, as in csi://0")
    return SourceAddress(kind="csi", location=rest, name=text)


def _command(text: str, rest: str) -> SourceAddress:
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise _unknown(text, f"a command that cannot be split into words ({error})") from error
    if not words:
        raise _unknown(text, "no command, expected one as in cmd:gst-launch-1.0 -q … ! fdsink")
    return SourceAddress(kind="command", location=rest, name=redact(text))


def _file_url(text: str, rest: str) -> SourceAddress:
    return _path(text, unquote(rest))


def _path(text: str, location: str) -> SourceAddress:
    path = Path(location)
    try:
        kind: SourceKind | None = "folder" if path.is_dir() else "file" if path.exists() else None
    except (OSError, ValueError):
        kind = None
    if not location or kind is None:
        raise _unknown(text, "no file or folder of that name")
    return SourceAddress(kind=kind, location=str(path), name=redact(text), recorded=True)


_PARSERS = {
    "csi": _csi,
    "cmd": _command,
    "file": _file_url,
    **dict.fromkeys(STREAM_SCHEMES, _stream),
}


def _device(number: int) -> str:
    return str(number) if sys.platform == "darwin" else f"/dev/video{number}"


def _unknown(text: str, got: str) -> InputError:
    forms = "; ".join(form for form, _ in SOURCE_FORMS)
    return InputError(f"source {redact(text)!r}: got {got}; expected one of: {forms}")
