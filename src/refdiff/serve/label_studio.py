"""Label Studio's ML backend: a phrase typed into a text area becomes a region of the brush.

The protocol is that of `label_studio_ml/api.py` and of Label Studio's `ml/api_connector.py`. A request
without a phrase means that a task was opened: its image is encoded then, so that the phrase is answered soon.
Drafts and annotations that come along are ignored, and so are the host and the token that Label Studio sends.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from refdiff import __version__
from refdiff.batch.label_studio import brush_region, prediction, region_id
from refdiff.errors import InputError
from refdiff.runtime.segmentation import Segmentation
from refdiff.serve.label_studio_image import LabelStudioImages, LabelStudioOptions
from refdiff.serve.request import Prompt, in_thread_if_large, parse_json
from refdiff.serve.service import AnswerService, ProblemError, client_gone, problem_of

_LOGGER = logging.getLogger("refdiff.serve")
_VERSION = f"refdiff-{__version__}"
_WORD = re.compile(r"\w+")
_MOST_CONFIG = 1 << 18
"""Characters of a labeling interface: some thousand labels."""

_EXAMPLE = (
    '<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>'
    '<BrushLabels name="mask" toName="image"><Label value="mug"/></BrushLabels></View>'
)


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """What a labeling interface says about its image, brush and text area."""

    image: str
    """Name of the tag Image."""
    key: str
    """Key of the image in a task's data."""
    brush: str
    """Name of the tag BrushLabels."""
    labels: tuple[str, ...]
    prompt: str
    """Name of the tag TextArea."""
    min_confidence: float | None
    """0..1; the attribute `model_score_threshold` of BrushLabels."""


@dataclass(frozen=True, kw_only=True)
class _Tag:
    kind: str
    attributes: Mapping[str, str]
    parents: tuple[int, ...]
    """Numbers of the tags around it."""


@dataclass(kw_only=True)
class _Tags:
    """Takes the tags of a document in their order."""

    found: list[_Tag] = field(default_factory=list)
    open: list[int] = field(default_factory=list)

    def start(self, kind: str, attributes: dict[str, str]) -> None:
        self.found.append(_Tag(kind=kind, attributes=attributes, parents=tuple(self.open[-8:])))
        self.open.append(len(self.found) - 1)

    def end(self, _: str) -> None:
        self.open.pop()

    def first(self, kind: str, target: str | None = None) -> int:
        """Return the number of the first tag of a kind, which names another tag if it is given.

        Raises:
            InputError: there is none, or it has no name.
        """
        for number, tag in enumerate(self.found):
            if tag.kind == kind and target in (None, tag.attributes.get("toName")):
                if not tag.attributes.get("name"):
                    raise InputError(f"the labeling interface has a {kind} without a name; {_advice()}")
                return number
        where = "" if target is None else f' with toName="{target}"'
        raise InputError(f"the labeling interface has no {kind}{where}; {_advice()}")


def _advice() -> str:
    return f"it needs Image, TextArea and BrushLabels, such as {_EXAMPLE}"


def read_label_config(text: object) -> LabelConfig:
    """Read a labeling interface.

    Args:
        text: the XML document that Label Studio sends.

    Raises:
        InputError: it is no XML, has a document type (whose entities could grow without limit), or lacks
            a tag, a name or a label; the message shows an interface that works.
    """
    tags = _parse(text)
    brush = tags.first("BrushLabels")
    target = tags.found[brush].attributes.get("toName", "")
    image = tags.first("Image")
    if tags.found[image].attributes["name"] != target:
        raise InputError(
            f'BrushLabels has toName="{target}" and the image is called '
            f'"{tags.found[image].attributes["name"]}"; {_advice()}'
        )
    key = tags.found[image].attributes.get("value", "")
    if not re.fullmatch(r"\$\w+", key):
        raise InputError(f'the Image has value="{key}", expected the key of the data, such as "$image"')
    inside = [tag for tag in tags.found if tag.kind == "Label" and brush in tag.parents]
    labels = tuple(value for tag in inside if (value := tag.attributes.get("value")))
    if not labels:
        raise InputError(f"BrushLabels has no Label with a value; {_advice()}")
    return LabelConfig(
        image=target,
        key=key[1:],
        brush=tags.found[brush].attributes["name"],
        labels=labels,
        prompt=tags.found[tags.first("TextArea", target)].attributes["name"],
        min_confidence=_threshold(tags.found[brush].attributes.get("model_score_threshold")),
    )


def _parse(text: object) -> _Tags:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"got no labeling interface (label_config); {_advice()}")
    if len(text) > _MOST_CONFIG:
        raise InputError(
            f"got a labeling interface of {len(text)} characters, expected at most {_MOST_CONFIG}"
        )
    tags, parser = _Tags(), expat.ParserCreate("utf-8")
    parser.StartElementHandler, parser.EndElementHandler = tags.start, tags.end
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(text.encode("utf-8", "replace"), True)  # noqa: FBT003 - takes no names
    except expat.ExpatError as error:
        raise InputError(f"the labeling interface is no XML ({error}); {_advice()}") from error
    return tags


def _refuse_doctype(*_: object) -> None:
    raise InputError("the labeling interface has a document type; remove the line <!DOCTYPE ...>")


def _threshold(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError(f"got model_score_threshold {text[:40]!r}, expected a number from 0 to 1")
    return value


def phrase_in(context: object, name: str) -> str | None:
    """Return the newest text of a text area, or None if the context has none.

    Args:
        context: what Label Studio sends about an interaction: {"result": [{"from_name", "value"}, ...]}.
        name: of the text area.
    """
    results = context.get("result") if isinstance(context, dict) else None
    for result in reversed(results if isinstance(results, list) else []):
        if not isinstance(result, dict) or result.get("from_name") != name:
            continue
        value = result.get("value")
        texts = value.get("text") if isinstance(value, dict) else None
        texts = [texts] if isinstance(texts, str) else texts
        if isinstance(texts, list) and texts and isinstance(texts[-1], str) and texts[-1].strip():
            return texts[-1]
    return None


def label_for(phrase: str, root: str, labels: Sequence[str]) -> str | None:
    """Choose the label of a region, or None where no label is known to be right.

    It is the only label, the one that equals the phrase, or the longest one whose words are those of the
    phrase around its head word: "red mug" for "the red mug near the plate", but not "plate".

    Args:
        phrase: what the annotator typed.
        root: head word of the phrase.
        labels: of the labeling interface, at least one.
    """
    if len(set(labels)) == 1:
        return labels[0]
    words, head = _words(phrase), _words(root)
    begin = next(iter(_places(head, words)), len(words))
    ends = begin + len(head)

    def fits(label: str) -> bool:
        own = _words(label)
        return own == words or any(at <= begin and ends <= at + len(own) for at in _places(own, words))

    return max(filter(fits, labels), key=len, default=None)


def _words(text: str) -> list[str]:
    return re.findall(_WORD, text.lower())


def _places(part: list[str], words: list[str]) -> list[int]:
    """Return where some words begin among others."""
    size = len(part)
    return [at for at in range(len(words) - size + 1) if size and words[at : at + size] == part]


def label_studio_routes(service: AnswerService, options: LabelStudioOptions) -> list[Route]:
    """Return the routes of the ML backend.

    Args:
        service: answers.
        options: where images may come from.

    Raises:
        InputError: the address of Label Studio is not one of a server.
    """
    backend = _Backend(service, LabelStudioImages(options))
    return [
        Route("/health", backend.health),
        Route("/setup", backend.setup, methods=["POST"]),
        Route("/predict", backend.predict, methods=["POST"]),
        Route("/webhook", backend.webhook, methods=["POST"]),
        Route("/versions", backend.versions),
    ]


class _Backend:
    """The handlers."""

    def __init__(self, service: AnswerService, images: LabelStudioImages) -> None:
        self._service, self._images = service, images

    async def health(self, _: Request) -> Response:
        """Say that requests are answered."""
        ready = self._service.ready
        state = {"status": "UP" if ready else "DOWN", "model_class": "refdiff"}
        return JSONResponse(state, status_code=200 if ready else 503)

    async def versions(self, _: Request) -> Response:
        """Name the one version."""
        return JSONResponse({"versions": [_VERSION]})

    async def webhook(self, _: Request) -> Response:
        """Take the news of annotations; nothing is learned from them."""
        return JSONResponse({}, status_code=201)

    async def setup(self, request: Request) -> Response:
        """Check the labeling interface of a project; it may have none yet."""
        document = await _document(request)
        if document.get("schema"):
            _checked_config(document["schema"])
        return JSONResponse({"model_version": _VERSION})

    async def predict(self, request: Request) -> Response:
        """Answer the phrase of an interaction, or encode the image of a task that was opened."""
        self._service.check_accepting()
        document = await _document(request)
        tasks = document.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise ProblemError(400, "invalid_request", "expected tasks, a list of objects with data")
        config = _checked_config(document.get("label_config"))
        params = document.get("params")
        phrase = phrase_in(params.get("context") if isinstance(params, dict) else None, config.prompt)
        results: list[Any] = [[] for _ in tasks]
        if len(tasks) == 1:
            image = await self._image(tasks[0], config.key)
            if phrase is None:
                await self._encode(image)
            else:
                results = [await self._answer(request, image, phrase, config)]
        return JSONResponse({"results": results, "model_version": _VERSION})

    async def _image(self, task: Mapping[str, Any], key: str) -> bytes:
        data = task.get("data")
        if not isinstance(data, dict) or key not in data:
            raise ProblemError(400, "invalid_request", f"the task's data have no {key!r}, which Image names")
        try:
            return await asyncio.to_thread(self._images.read, data[key])
        except InputError as error:
            _LOGGER.warning("label studio: %s", error)
            raise problem_of(error) from None

    async def _encode(self, image: bytes) -> None:
        """Put an image into the queue and do not wait; where the queue is full, the phrase will wait."""
        try:
            await self._service.ask((), image=image)
        except ProblemError as problem:
            if problem.status not in (429, 503):
                raise

    async def _answer(
        self, request: Request, image: bytes, phrase: str, config: LabelConfig
    ) -> dict[str, Any]:
        prompts = (Prompt(text=phrase, min_confidence=config.min_confidence),)
        answers = await self._service.ask(prompts, image=image)
        (found,) = await answers.all(request)
        return await asyncio.to_thread(_prediction, found, config)


def _prediction(found: Segmentation, config: LabelConfig) -> dict[str, Any]:
    """Return an answer as a prediction: one region, or none without a mask."""
    if not found.matched:
        return prediction([], _VERSION)
    region = brush_region(
        found.mask,
        label_for(found.phrase, found.root, config.labels),
        region=region_id(found.phrase, str(found.box), str(found.area)),
        score=found.confidence,
        from_name=config.brush,
        to_name=config.image,
    )
    return prediction([region], _VERSION)


async def _document(request: Request) -> Mapping[str, Any]:
    try:
        body = await request.body()
        return await in_thread_if_large(len(body), parse_json, body)
    except InputError as error:
        raise problem_of(error) from None
    except ClientDisconnect:
        raise client_gone() from None


def _checked_config(text: object) -> LabelConfig:
    """Read a labeling interface; what is wrong with it is logged, as Label Studio shows only the status."""
    try:
        return read_label_config(text)
    except InputError as error:
        _LOGGER.warning("label studio: %s", error)
        raise problem_of(error) from None
