"""A manifest vouches for itself, and every field of it is plausible."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refdiff.contracts.inspection import bundle_path
from refdiff.contracts.manifest import MANIFEST_NAME, Manifest, manifest_sha256
from refdiff.errors import BundleError
from tests.support.fuzzing import fuzz

MINIATURE = json.loads((bundle_path("mini") / MANIFEST_NAME).read_text())


SMALL = {
    **MINIATURE,
    "graphs": {"sd_text": MINIATURE["graphs"]["sd_text"]},
    "files": {name: MINIATURE["files"][name] for name in ("sd_text.onnx", "sd_text.onnx.data")},
}
"""One of each kind of field."""


def changed(change: Callable[[Any], object], *, sealed: bool = True, of: Any = MINIATURE) -> Any:
    document = json.loads(json.dumps(of))
    change(document)
    return {**document, "sha256": manifest_sha256(document)} if sealed else document


def read(document: object) -> Manifest:
    return Manifest.from_json(document, where="manifest.json")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [leaf for key, each in items for leaf in leaves(each, (*path, key))]
    return inner or [path]


def put(document: Any, path: tuple[Any, ...], value: object) -> None:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


def get(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def test_the_hash_survives_reading_and_writing() -> None:
    manifest = read(MINIATURE)
    assert manifest.sha256 == MINIATURE["sha256"]
    assert json.loads(json.dumps(manifest.to_json())) == MINIATURE


def test_any_change_of_any_value_is_noticed() -> None:
    for path in leaves(SMALL):
        value = get(SMALL, path)
        other = value + "x" if isinstance(value, str) else 7 if value is None else value * 2 + 1
        if path == ("format_version",):
            continue
        with pytest.raises(BundleError, match="was changed: got sha256"):
            read(changed(lambda d, p=path, o=other: put(d, p, o), sealed=False, of=SMALL))


def test_a_value_of_another_kind_is_refused_even_where_the_hash_was_made_to_fit() -> None:
    for path in leaves(SMALL):
        for other in ({}, [None], -1, "\x1b[31m", None, 1e308):
            if path == ("sha256",) or other == get(SMALL, path):
                continue
            document = changed(lambda d, p=path, o=other: put(d, p, o), of=SMALL)
            if path[0] == "random_seed" or (path[-1] in ("recipe",) and other is None):
                continue
            if path[-1] in ("error", "correlation") and isinstance(other, (int, float)):
                continue
            with pytest.raises(BundleError):
                read(document)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            ("spec", "sam", "pixel_mean"),
            [123.675, 16.28e3, 103.53],
            r"spec\.sam\.pixel_mean is 16280\.0, ",
        ),
        (("spec", "sam", "pixel_std"), [0.0, 57.12, 57.375], r"spec\.sam\.pixel_std is 0\.0, expected 1 to"),
        (("spec", "clip", "pixel_std"), [58.3, 57.1, 57.4], r"spec\.clip\.pixel_std is 58\.3"),
        (("spec", "clip", "pixel_mean"), [0.5, 0.5], r"expected 3 numbers"),
        (("spec", "sam", "image_size"), 161, r"spec\.sam\.image_size is 161, expected a multiple"),
        (("spec", "sam", "image_size"), 320, r"graph sam_encoder has the inputs image float32 \[1, 3, 160"),
        (("spec", "clip", "width"), 129, r"graph clip_image has the inputs"),
        (("spec", "diffusion", "vae_factor"), 8, r"graph vae_encoder has the outputs"),
        (("spec", "diffusion", "beta_start"), 0.4, r"beta_start is 0\.4, expected at most 0\.012"),
        (("spec", "diffusion", "prediction"), "sample", r"expected one of epsilon, v_prediction"),
        (("spec", "diffusion", "tapped_layers"), ["a", "a"], r"each once"),
        (("spec", "diffusion", "maps"), ["depth"], r"expected names of coarse, self"),
        (("spec", "diffusion", "maps"), [], r"one or more names"),
        (("spec", "diffusion", "maps"), ["self"], r"graph unet.* has the outputs .*self_taps"),
        (("spec", "context_length"), 78, r"graph sd_text has the inputs ids int32"),
        (("precision",), "fp12", r"precision is 'fp12', expected one of fp32"),
        (("files", "tokenizer.json", "sha256"), "ab", r"sha256 of tokenizer\.json is 'ab'"),
        (("random_seed",), -3, r"random_seed is -3"),
        (("graphs", "unet", "recipe"), "other.json", r"graph unet names 'other\.json', which has no hash"),
    ],
)
def test_an_implausible_value_is_refused_by_name(path: tuple[str, ...], value: object, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        read(changed(lambda d: put(d, path, value)))


def test_no_default_stands_in_for_a_missing_field() -> None:
    for path in (("spec", "sam", "pixel_mean"), ("spec", "context_length"), ("random_seed",), ("sha256",)):
        document = changed(lambda d, p=path: get(d, p[:-1]).pop(p[-1]), sealed=path != ("sha256",))
        with pytest.raises(BundleError):
            read(document)


@pytest.mark.parametrize("name", [".hidden", "a/.b", "a\nb", "engines/unet.plan", "manifest.json", "a" * 300])
def test_a_file_name_that_is_not_plain_is_refused(name: str) -> None:
    record = MINIATURE["files"]["tokenizer.json"]
    with pytest.raises(BundleError, match=r"expected a plain name"):
        read(changed(lambda d: d["files"].update({name: record})))


def test_a_message_is_one_short_line_and_no_command_of_the_manifest_s_making() -> None:
    hostile = {"format_version": 99, "refdiff_version": "1'; rm -rf ~ #\x1b[31m\n"}
    with pytest.raises(BundleError, match=r"written by refdiff unknown; .*pip install -U refdiff$"):
        read(hostile)
    document = changed(lambda d: d["spec"].update(name=["x" * 10_000, "\x1b[31m"]))
    with pytest.raises(BundleError) as refused:
        read(document)
    assert len(str(refused.value)) < 400
    assert str(refused.value).isprintable()


def test_an_earlier_format_says_how_to_make_the_bundle_again() -> None:
    with pytest.raises(BundleError, match=r"format 5.*reads format 6; export again with: refdiff export"):
        read({**MINIATURE, "format_version": 5})


def test_any_manifest_is_read_or_refused(tmp_path: Path) -> None:
    def read_text(content: bytes) -> None:
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            return
        if isinstance(document, dict):
            try:
                document["sha256"] = manifest_sha256(document)
            except (ValueError, RecursionError):
                return
        read(document)

    assert fuzz(read_text, [json.dumps(MINIATURE).encode()], seed=4, allowed=BundleError).refused


def test_deeply_nested_values_are_one_line() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    with pytest.raises(BundleError, match=r"spec is \[\[.*, expected an object") as refused:
        read(changed(lambda d: d.update(spec=deep)))
    assert len(str(refused.value)) < 400
