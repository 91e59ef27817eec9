"""The page at `/`: its files, and the rendered scenes that it offers.

No path of a request reaches the file system: files and scenes are looked up by name among those in memory.
"""

from __future__ import annotations

import functools
import mimetypes
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from refdiff.data.synthetic import demo_samples
from refdiff.runtime.image import png

_OFFERS = b'data-offers=""'
"""Attribute of the page that says what this server allows."""


def page_routes(*, live: bool = False, share: bool = False) -> list[Route]:
    """Return the routes of the page, its files and its scenes.

    Args:
        live: whether the page offers live sessions.
        share: whether it offers to share overlays.
    """
    offers = " ".join(name for name, offered in {"live": live, "share": share}.items() if offered)
    index = _files()["index.html"].replace(_OFFERS, f'data-offers="{offers}"'.encode(), 1)

    async def show(_: Request) -> Response:
        return Response(index, media_type="text/html")

    return [
        Route("/", show),
        Route("/static/{name}", _file),
        Route("/v1/demo", _scenes),
        Route("/v1/demo/{name}", _scene),
    ]


@functools.cache
def _files() -> dict[str, bytes]:
    """Return the page's files by name."""
    folder = files("refdiff.serve").joinpath("static")
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


@functools.cache
def _pictures() -> dict[str, tuple[str, bytes]]:
    """Return phrase and PNG of each scene by name."""
    samples = enumerate(demo_samples(), start=1)
    return {f"scene-{number}": (sample.phrase, png(sample.read())) for number, sample in samples}


async def _file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _files():
        raise HTTPException(404)
    kind, _ = mimetypes.guess_type(name)
    return Response(_files()[name], media_type=kind or "application/octet-stream")


def _scenes(_: Request) -> Response:
    return JSONResponse([{"name": name, "phrase": phrase} for name, (phrase, _) in _pictures().items()])


def _scene(request: Request) -> Response:
    found = _pictures().get(request.path_params["name"])
    if found is None:
        raise HTTPException(404)
    return Response(found[1], media_type="image/png")
