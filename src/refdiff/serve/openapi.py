"""The OpenAPI document of the HTTP API."""

from __future__ import annotations

from typing import Any

from refdiff import __version__
from refdiff.serve.request import FORMATS, MOST_PROMPTS
from refdiff.serve.tensors import MODEL_NAME

_ERRORS = {
    "400": "The request, the image or a phrase cannot be used.",
    "401": "The token is missing or wrong.",
    "404": "No image of this id is kept; send the image again.",
    "408": "The body arrived too slowly.",
    "413": "The body is too large.",
    "415": "Neither JSON nor a multipart form.",
    "429": "Too many requests wait; Retry-After says when to try again.",
    "503": "The server is starting or stopping.",
    "504": "No answer within the server's time.",
}

_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
_PROMPT = {
    "oneOf": [
        {"type": "string"},
        {
            "type": "object",
            "required": ["text"],
            "properties": {
                "type": {"const": "text"},
                "text": {"type": "string", "examples": ["the red mug on the left"]},
                "output_prob_thresh": {
                    **_PROBABILITY,
                    "description": "Least confidence; an answer below has no mask.",
                },
            },
        },
    ]
}
_REQUEST = {
    "type": "object",
    "required": ["prompts"],
    "properties": {
        "image": {
            "description": "The bytes of an image file in base64; either this or image_id.",
            "oneOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "required": ["type", "value"],
                    "properties": {"type": {"const": "base64"}, "value": {"type": "string"}},
                },
            ],
        },
        "image_id": {
            "type": "string",
            "description": "Id from an earlier answer: the image is not sent again.",
        },
        "prompts": {"type": "array", "minItems": 1, "maxItems": MOST_PROMPTS, "items": _PROMPT},
        "format": {"enum": list(FORMATS), "default": "rle"},
        "min_confidence": {**_PROBABILITY, "description": "For prompts without one of their own."},
        "candidates": {"type": "boolean", "default": False, "description": "Return every candidate."},
        "heat": {"type": "boolean", "default": False, "description": "Return the heatmap."},
    },
}
_FORM = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "image": {"type": "string", "format": "binary"},
        "prompt": {"type": "array", "items": {"type": "string"}},
        **{
            name: _REQUEST["properties"][name]  # type: ignore[index]
            for name in ("image_id", "format", "min_confidence", "candidates", "heat")
        },
    },
}
_NUMBER_OR_NULL = {"type": ["number", "null"]}
_PARTS = {
    "type": "object",
    "properties": dict.fromkeys(("hard", "soft", "generative", "place", "total"), _NUMBER_OR_NULL),
}
_PREDICTION = {
    "type": "object",
    "properties": {
        "masks": {"description": "COCO run lengths, rings of [x, y] in px, or a PNG file in base64."},
        "format": {"enum": list(FORMATS)},
        "confidence": {
            **_NUMBER_OR_NULL,
            "description": "Probability that the mask is right; null: not calibrated.",
        },
        "score": {"type": "number"},
        "score_parts": _PARTS,
        "candidate": {"type": "integer"},
        "bbox": {"type": "array", "description": "x, y, width, height in px.", "items": {"type": "integer"}},
        "area": {"type": "integer", "description": "px."},
    },
}
_RESULT = {
    "type": "object",
    "properties": {
        "prompt_index": {"type": "integer"},
        "echo": {"type": "object", "properties": {"text": {"type": "string"}}},
        "predictions": {"type": "array", "maxItems": 1, "items": _PREDICTION},
        "matched": {"type": "boolean"},
        "reason": {"type": ["string", "null"], "description": "Why there is no mask."},
        "cautions": {"type": "array", "items": {"type": "string"}},
        "root": {"type": "string", "description": "The head word of the phrase."},
        "candidates": {"type": "array", "items": {"type": "object"}},
        "heat": {"type": ["string", "null"]},
    },
}
_RESPONSE = {
    "type": "object",
    "properties": {
        "image_id": {"type": "string"},
        "prompt_results": {"type": "array", "items": _RESULT},
        "time": {"type": "number", "description": "s."},
        "timings": {"type": "object", "description": "Time of each stage of the pipeline in s."},
    },
}


def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    body = {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/SegmentRequest"}},
            "multipart/form-data": {"schema": _FORM},
        },
    }
    answer = {"application/json": {"schema": {"$ref": "#/components/schemas/SegmentResponse"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "refdiff", "version": __version__},
        "paths": {
            "/v1/segment": {
                "post": {
                    "summary": "Find the mask of what each phrase names.",
                    "requestBody": body,
                    "responses": {"200": {"description": "The answers.", "content": answer}, **_errors()},
                }
            },
            "/v1/segment/stream": {
                "post": {
                    "summary": "The same; each answer is sent when it is ready.",
                    "description": "Events: `answer` for each prompt, then `done` or `error`.",
                    "requestBody": body,
                    "responses": {
                        "200": {
                            "description": "Server-sent events.",
                            "content": {"text/event-stream": {"schema": {"type": "string"}}},
                        },
                        **_errors(),
                    },
                }
            },
            "/health/live": {"get": _plain("Whether the engines' thread runs.")},
            "/health/ready": {"get": _plain("Whether requests are answered.")},
            "/metrics": {"get": _plain("Measurements in Prometheus' text format.")},
            **_inference_paths(),
        },
        "components": {
            "schemas": {"SegmentRequest": _REQUEST, "SegmentResponse": _RESPONSE, "Error": _error()},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


def _inference_paths() -> dict[str, Any]:
    """Return the paths of KServe v2; its own specification describes their bodies."""
    described = {
        "/v2": "The server, by the Open Inference Protocol.",
        "/v2/health/live": "Whether the engines' thread runs.",
        "/v2/health/ready": "Whether requests are answered.",
        f"/v2/models/{MODEL_NAME}": "Inputs and outputs of the model.",
        f"/v2/models/{MODEL_NAME}/ready": "Whether requests are answered.",
        f"/v2/models/{MODEL_NAME}/config": "Triton's configuration of the model.",
    }
    kinds = ("application/json", "application/octet-stream")
    content: dict[str, Any] = {kind: {"schema": {}} for kind in kinds}
    infer = {
        "summary": "Find the masks, as tensors.",
        "description": "JSON, or JSON and binary data with the header Inference-Header-Content-Length.",
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "The outputs.", "content": content}},
    }
    paths: dict[str, Any] = {path: {"get": _plain(summary)} for path, summary in described.items()}
    return {**paths, f"/v2/models/{MODEL_NAME}/infer": {"post": infer}}


def _errors() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": text, "content": content} for status, text in _ERRORS.items()}


def _error() -> dict[str, Any]:
    texts = {name: {"type": "string"} for name in ("type", "message", "request_id")}
    return {"type": "object", "properties": {"error": {"type": "object", "properties": texts}}}


def _plain(summary: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": summary}}}
