"""Bundles: what opens, what is refused, and what a failed writer leaves behind."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.contracts.bundle import (
    FORMAT_VERSION,
    Manifest,
    open_bundle,
    write_bundle,
)
from refdiff.contracts.graphs import graph_contract
from refdiff.errors import BundleError
from tests.support.prompts import readable_vectors
from tests.support.small_bundle import GOLDEN, POSITIONS, SPEC, edit, fill


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    with write_bundle(tmp_path / "bundle") as writer:
        fill(writer)
    return tmp_path / "bundle"


def test_a_bundle_gives_back_what_was_written(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.spec == SPEC
    assert opened.manifest.precision == "fp32"
    assert opened.manifest.sources == {"unet": "ab"}
    assert opened.manifest.versions == {"torch": "2.9"}
    assert opened.manifest.graphs["sd_text"].inputs == graph_contract(SPEC)["sd_text"].inputs
    assert opened.graph_path("sd_text") == bundle / "sd_text.onnx"
    assert opened.tokenizer_json() == '{"model": "é"}'
    np.testing.assert_array_equal(opened.clip_positions(), POSITIONS)
    inputs, outputs = opened.golden()["sd_text"]
    np.testing.assert_array_equal(inputs["ids"], GOLDEN["sd_text"][0]["ids"])
    np.testing.assert_array_equal(outputs["context"], GOLDEN["sd_text"][1]["context"])


def test_the_golden_record_stores_a_shared_array_once_and_halves_what_is_half(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    half = rng.standard_normal((40, 50)).astype(np.float16).astype(np.float32)
    full = rng.standard_normal((40, 50)).astype(np.float32)
    results = {"taps": full}
    with write_bundle(tmp_path / "b") as writer:
        writer.write_golden({"unet": ({"a": half, "b": full}, results), "unet_taps": ({"a": half}, results)})
        writer.describe(spec=SPEC, precision="fp32", sources={}, versions={}, graphs={})
    golden = open_bundle(tmp_path / "b").golden()
    for graph in ("unet", "unet_taps"):
        feeds, outputs = golden[graph]
        np.testing.assert_array_equal(feeds["a"], half)
        np.testing.assert_array_equal(outputs["taps"], full)
        assert feeds["a"].dtype == outputs["taps"].dtype == np.float32
    np.testing.assert_array_equal(golden["unet"][0]["b"], full)
    assert (tmp_path / "b" / "golden.npz").stat().st_size < half.nbytes // 2 + full.nbytes + 2000


def test_the_manifest_survives_json(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    again = Manifest.from_json(json.loads(json.dumps(manifest.to_json())), where="here")
    assert again == manifest


def test_the_same_content_makes_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    with write_bundle(tmp_path / "again") as writer:
        fill(writer)
    assert open_bundle(tmp_path / "again").manifest == open_bundle(bundle).manifest


def test_a_graph_the_bundle_lacks_is_named(bundle: Path) -> None:
    with pytest.raises(BundleError, match="no graph 'unet', it has: sd_text"):
        open_bundle(bundle).graph_path("unet")


def test_a_device_s_own_plans_are_no_part_of_the_manifest(bundle: Path) -> None:
    (bundle / "engines").mkdir()
    (bundle / "engines" / "unet.plan").write_bytes(b"plan")
    assert "engines/unet.plan" not in open_bundle(bundle).manifest.files


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none does not exist; make one with: refdiff export"):
        open_bundle(tmp_path / "none")


def test_a_file_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="is not a folder"):
        open_bundle(tmp_path / "file")


def test_a_folder_without_a_manifest_is_half_written(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"no manifest\.json: not a bundle, or a half-written one"):
        open_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"text"', "[" * 100_000, "\ufffe"])
def test_a_manifest_that_is_no_object_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="export again"):
        open_bundle(bundle)


def test_bytes_that_are_no_text_are_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="not readable JSON"):
        open_bundle(bundle)


def test_a_newer_format_names_the_version_to_upgrade_to(bundle: Path) -> None:
    newer = {"format_version": FORMAT_VERSION + 1, "refdiff_version": "9.1"}
    edit(bundle, lambda d: (d.clear(), d.update(newer)))  # whatever else a newer format has
    with pytest.raises(
        BundleError, match=r"format 7, written by refdiff 9\.1; .* reads format 6; .* 'refdiff>=9\.1'"
    ):
        open_bundle(bundle)


def test_an_older_format_is_to_be_exported_again(bundle: Path) -> None:
    edit(bundle, lambda d: d.update(format_version=3, refdiff_version="0.1"))
    said = r"manifest\.json has bundle format 3, written by refdiff 0\.1; .* reads format 6; export again"
    with pytest.raises(BundleError, match=said):
        open_bundle(bundle)


@pytest.mark.parametrize("version", [None, "1", 0, True, 1.0])
def test_a_format_version_that_is_no_number_is_refused(bundle: Path, version: object) -> None:
    edit(bundle, lambda d: d.update(format_version=version))
    with pytest.raises(BundleError, match="format_version"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("spec"),
        lambda d: d["spec"].pop("sam"),
        lambda d: d.update(surplus=1),
        lambda d: d.update(files=[]),
        lambda d: d.update(graphs=None),
        lambda d: d["files"].update({"sd_text.onnx": "hash"}),
        lambda d: d["files"]["sd_text.onnx"].update(size_bytes="5"),
        lambda d: d["graphs"]["sd_text"].pop("inputs"),
        lambda d: d["graphs"]["sd_text"].update(files=[]),
        lambda d: d["graphs"]["sd_text"].update(files=["unlisted.onnx"]),
    ],
)
def test_a_manifest_of_another_make_is_refused(bundle: Path, change: Callable[[Any], object]) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match="export again"):
        open_bundle(bundle)


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "sd_text.onnx.data").unlink()
    with pytest.raises(BundleError, match=r"sd_text\.onnx\.data is missing"):
        open_bundle(bundle)


def test_a_cut_short_file_is_named(bundle: Path) -> None:
    (bundle / "sd_text.onnx.data").write_bytes(b"wei")
    for verify in ("hash", "size"):
        with pytest.raises(BundleError, match=r"sd_text\.onnx\.data: got 3 bytes, expected 7"):
            open_bundle(bundle, verify=verify)  # type: ignore[arg-type]


def test_a_changed_file_is_named_and_only_the_hash_sees_it(bundle: Path) -> None:
    (bundle / "sd_text.onnx.data").write_bytes(b"Weights")
    with pytest.raises(BundleError, match=r"sd_text\.onnx\.data was changed"):
        open_bundle(bundle)
    assert open_bundle(bundle, verify="size").spec == SPEC


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "..", "C:\\x", "a\\..\\b", ""]
)
def test_a_path_that_leaves_the_folder_is_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "secret").write_text("x")
    edit(bundle, lambda d: d["files"].update({name: {"sha256": "0", "size_bytes": 1}}))
    with pytest.raises(BundleError, match="outside the bundle"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["manifest.json", "unet.onnx"])
def test_a_link_to_itself_is_refused(mini_bundle: Path, tmp_path: Path, name: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(mini_bundle, bundle)
    (bundle / name).unlink()
    (bundle / name).symlink_to(name)
    with pytest.raises(BundleError, match=name):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["sd_text.onnx.data", "manifest.json"])
def test_a_link_that_leaves_the_folder_is_refused(bundle: Path, name: str) -> None:
    outside = bundle.parent / "outside"
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)
    with pytest.raises(BundleError, match=r"is a link to .* outside the bundle"):
        open_bundle(bundle)


def test_a_linked_folder_inside_that_leaves_is_refused(bundle: Path) -> None:
    (bundle.parent / "elsewhere").mkdir()
    (bundle.parent / "elsewhere" / "file").write_bytes(b"x")
    (bundle / "sub").symlink_to(bundle.parent / "elsewhere")
    edit(bundle, lambda d: d["files"].update({"sub/file": {"sha256": "0" * 64, "size_bytes": 1}}))
    with pytest.raises(BundleError, match="outside the bundle"):
        open_bundle(bundle)


def test_a_bundle_reached_by_a_link_opens(bundle: Path) -> None:
    (bundle.parent / "link").symlink_to(bundle)
    assert open_bundle(bundle.parent / "link").spec == SPEC


def test_pickled_golden_tensors_are_never_loaded(tmp_path: Path) -> None:
    with write_bundle(tmp_path / "b") as writer:
        fill(writer)
        np.savez(writer.path / "golden.npz", **{"g/in/x": np.array([print], dtype=object)})
        fresh = writer.manifest
        assert fresh is not None
        writer.describe(spec=SPEC, precision="fp32", sources={}, versions={}, graphs=dict(fresh.graphs))
    with pytest.raises(BundleError, match="not a golden record"):
        open_bundle(tmp_path / "b").golden()


def test_positions_of_another_size_are_refused(tmp_path: Path) -> None:
    with write_bundle(tmp_path / "b") as writer:
        graphs = fill(writer).graphs
        writer.write_clip_positions(POSITIONS[:2])
        writer.describe(spec=SPEC, precision="fp32", sources={}, versions={}, graphs=graphs)
    with pytest.raises(BundleError, match=re.escape("got float32 (2, 3), expected float32 (4, 3)")):
        open_bundle(tmp_path / "b").clip_positions()


def test_vectors_of_prompts_are_read_as_they_were_written_and_only_for_their_sizes(tmp_path: Path) -> None:
    vectors = readable_vectors(SPEC.sam)
    other = readable_vectors(replace(SPEC.sam, embed_channels=2 * SPEC.sam.embed_channels))
    for name, written in (("right", vectors), ("wrong", other)):
        with write_bundle(tmp_path / name) as writer:
            graphs = fill(writer).graphs
            writer.write_prompt_vectors(written)
            writer.describe(spec=SPEC, precision="fp32", sources={}, versions={}, graphs=graphs)
    np.testing.assert_array_equal(open_bundle(tmp_path / "right").prompt_vectors().labels, vectors.labels)
    with pytest.raises(BundleError, match=r"sam_prompts\.npz .*frequencies is .*; export again"):
        open_bundle(tmp_path / "wrong").prompt_vectors()


def test_a_bundle_without_vectors_of_prompts_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"does not list sam_prompts\.npz; export again"):
        open_bundle(bundle).prompt_vectors()


def test_a_flipped_bit_in_the_manifest_is_refused(bundle: Path) -> None:
    path = bundle / "manifest.json"
    text = path.read_text()
    assert "123.675" in text
    path.write_text(text.replace("123.675", "523.675"))
    with pytest.raises(BundleError, match=r"manifest\.json was changed: got sha256"):
        open_bundle(bundle, verify="size")


@pytest.mark.parametrize("name", ["sd_text.onnx.data", "manifest.json", "tokenizer.json"])
def test_a_fifo_in_the_place_of_a_file_is_refused_without_waiting(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match=r"is not a regular file|not a bundle"):
        open_bundle(bundle)


def _weights(location: str, offset: int = 0) -> bytes:
    """A graph of one initializer whose values lie elsewhere."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    entries = (("location", location), ("offset", str(offset)), ("length", "7"))
    external = b"".join(field(13, field(1, key.encode()) + field(2, text.encode())) for key, text in entries)
    return field(7, field(5, external))


def _bundle_of(folder: Path, graph: bytes) -> Path:
    with write_bundle(folder) as writer:
        graphs = fill(writer).graphs
        (writer.path / "sd_text.onnx").write_bytes(graph)
        (writer.path / "other.data").write_bytes(b"unhashed by the graph")
        writer.describe(spec=SPEC, precision="fp32", sources={}, versions={}, graphs=graphs)
    return folder


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "other.data", "sub/../sd_text.onnx.data", "*/_ORT_MEM_ADDR_/*"]
)
def test_weights_outside_the_graph_s_listed_files_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = _bundle_of(tmp_path / "b", _weights(location))
    with pytest.raises(BundleError, match="which the manifest does not list for it; do not use this bundle"):
        open_bundle(folder, verify="size")


def test_weights_in_the_graph_s_listed_file_are_accepted(tmp_path: Path) -> None:
    assert open_bundle(_bundle_of(tmp_path / "b", _weights("sd_text.onnx.data"))).spec == SPEC


def test_weights_beyond_the_end_of_their_file_are_refused(tmp_path: Path) -> None:
    folder = _bundle_of(tmp_path / "b", _weights("sd_text.onnx.data", offset=1))
    with pytest.raises(BundleError, match=r"reads 1 \+ 7 bytes of sd_text\.onnx\.data, which has 7"):
        open_bundle(folder)


def test_a_tokenizer_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    with write_bundle(tmp_path / "b") as writer:
        graphs = fill(writer).graphs
        (writer.path / "tokenizer.json").write_bytes(b"\xff\xfe{}")
        writer.describe(spec=SPEC, precision="fp32", sources={}, versions={}, graphs=graphs)
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        open_bundle(tmp_path / "b").tokenizer_json()
