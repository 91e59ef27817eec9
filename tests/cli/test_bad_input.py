"""All a person can get wrong, through the command line: one line, the right code, nothing half-written."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refdiff.cli import main
from refdiff.contracts.inspection import inspect
from refdiff.errors import BundleError
from refdiff.miniature.scenes import render_scene
from tests.support.damage import bomb, copy_of, edit_manifest


@pytest.fixture(scope="session")
def scene() -> Image.Image:
    return Image.fromarray(render_scene(1_000_000).image)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail, and hand over its one line."""

    def run(*arguments: object, code: int = 2) -> str:
        assert main([*map(str, arguments), "--json"]) == code
        streams = capsys.readouterr()
        last = streams.err.splitlines()[-1]
        assert last.startswith("error: ")
        assert "Traceback" not in streams.err
        error = json.loads(streams.out)["error"]  # exactly one document
        assert error["exit_code"] == code
        assert last == f"error: {error['message']}"
        return last

    return run


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def animation(image: Image.Image) -> bytes:
    return encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)])


BAD_PICTURES: dict[str, tuple[Callable[[Image.Image], bytes | None], str]] = {
    "missing": (lambda image: None, "does not exist"),
    "empty": (lambda image: b"", "got no data"),
    "text": (lambda image: b"this is no picture", "not an image that can be read"),
    "truncated.jpg": (lambda image: encoded(image, "JPEG")[:-500], "damaged"),
    "truncated.png": (lambda image: encoded(image, "PNG")[:2000], "damaged"),
    "bomb.png": (lambda image: bomb(), "megapixels"),
    "animated.gif": (animation, "2 frames"),
    "row.png": (
        lambda image: encoded(image.resize((97, 1)), "PNG"),
        "97x1 px is smaller than one CLIP patch",
    ),
    "column.png": (lambda image: encoded(image.resize((1, 97)), "PNG"), "smaller than one CLIP patch"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_picture_that_cannot_be_used_is_refused(
    name: str, mini_bundle: Path, scene: Image.Image, tmp_path: Path, refused: Callable[..., str]
) -> None:
    make, said = BAD_PICTURES[name]
    picture, data = tmp_path / name, make(scene)
    if data is not None:
        picture.write_bytes(data)
    before = sorted(tmp_path.iterdir())
    # The release sees the image at its own size; edge enlarges what is thinner than a patch.
    variant = "official" if name in ("row.png", "column.png") else "edge"
    command = ("segment", mini_bundle, picture, "the mug", "-o", tmp_path / "out.png", "--variant", variant)
    assert said in refused(*command)
    assert sorted(tmp_path.iterdir()) == before


def exif_turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn a quarter clockwise
    return exif


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


ODD_PICTURES: dict[str, tuple[Callable[[Image.Image], bytes], tuple[int, int]]] = {
    "cmyk.jpg": (lambda image: encoded(image.convert("CMYK"), "JPEG"), (192, 112)),
    "16-bit.png": (lambda image: encoded(deep(image), "PNG"), (192, 112)),
    "grey.png": (lambda image: encoded(image.convert("L"), "PNG"), (192, 112)),
    "alpha.png": (lambda image: encoded(image.convert("RGBA"), "PNG"), (192, 112)),
    "turned.jpg": (lambda image: encoded(image, "JPEG", exif=exif_turned()), (112, 192)),
    "thin.png": (lambda image: encoded(image.resize((97, 9)), "PNG"), (97, 9)),
    "tall.png": (lambda image: encoded(image.resize((9, 97)), "PNG"), (9, 97)),
}


ODD_SHAPES = ("turned.jpg", "thin.png", "tall.png")
"""Those whose size matters to a variant; pixels are read in the same way for all of them."""


@pytest.mark.slow
@pytest.mark.parametrize("size_wh", [(97, 1), (1, 97)])
def test_a_picture_one_pixel_thin_is_segmented_in_edge(
    size_wh: tuple[int, int], scene: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "thin.png"
    scene.resize(size_wh).save(picture)
    assert main(["segment", "mini", str(picture), "the mug", "--json"]) == 0
    size = json.loads(capsys.readouterr().out)["size"]
    assert (size["width"], size["height"]) == size_wh


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"),
    [*((name, "edge") for name in ODD_PICTURES), *((name, "official") for name in ODD_SHAPES)],
)
def test_an_odd_but_valid_picture_is_segmented(
    name: str,
    variant: str,
    mini_bundle: Path,
    scene: Image.Image,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, size_wh = ODD_PICTURES[name]
    picture, output = tmp_path / name, tmp_path / "out.png"
    picture.write_bytes(make(scene))
    command = ["segment", mini_bundle, picture, "left mug", "-o", output, "--variant", variant, "--json"]
    assert main(list(map(str, command))) == 0
    size = json.loads(capsys.readouterr().out)["size"]
    with Image.open(output) as mask:
        assert (size["width"], size["height"]) == mask.size == size_wh


BAD_PHRASES = {
    "empty": ("", "empty phrase"),
    "blank": (" \t\n ", "empty phrase"),
    "chinese": ("左边的红色杯子", "got phrase '左边的红色杯子', expected English words"),
    "emoji": ("🔴☕", "expected English words"),
    "too long": ("the red mug " * 40, "tokens, expected at most 75"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_PHRASES)
def test_a_phrase_that_cannot_be_read_is_refused(
    name: str, mini_bundle: Path, scene: Image.Image, tmp_path: Path, refused: Callable[..., str]
) -> None:
    phrase, said = BAD_PHRASES[name]
    scene.save(tmp_path / "photo.png")
    line = refused("segment", mini_bundle, tmp_path / "photo.png", phrase, "-o", tmp_path / "out.png")
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


BAD_PROMPTS = {
    "box outside": (
        ["--box", "0,0,999,9"],
        "box 0, 0, 999, 9, which leaves the image; its size is 192x112 px",
    ),
    "flat box": (["--box", "5,5,5,9"], "box 5, 5, 5, 9 without an area"),
    "three numbers": (["--box", "1,2,3"], "got --box '1,2,3', expected x0,y0,x1,y1 in px"),
    "words": (["--point", "here"], "got --point 'here', expected x,y"),
    "no number": (["--point", "nan,4"], "expected 2 finite numbers"),
    "point outside": (["--point", "5,112"], "point 5, 112, outside of the image"),
    "negative alone": (["--point", "5,5:0"], "got 1 negative point alone"),
    "a phrase": (["the mug", "--point", "5,5"], "got a phrase with --box or --point"),
    "a word": (["--focus", "mug", "--box", "1,1,9,9"], "got --focus with --box or --point"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_a_prompt_that_cannot_be_used_is_refused(
    name: str, mini_bundle: Path, scene: Image.Image, tmp_path: Path, refused: Callable[..., str]
) -> None:
    options, said = BAD_PROMPTS[name]
    scene.save(tmp_path / "photo.png")
    line = refused("segment", mini_bundle, tmp_path / "photo.png", *options, "-o", tmp_path / "out.png")
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def remove(name: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).unlink()


def change_a_byte(bundle: Path) -> None:
    path = bundle / "unet.onnx.data"
    data = bytearray(path.read_bytes())
    data[100] ^= 0xFF
    path.write_bytes(data)


def escape(bundle: Path) -> None:
    (bundle.parent / "outside.onnx").write_bytes(b"x")
    edit_manifest(
        bundle,
        lambda document: document["files"].update({"../outside.onnx": {"sha256": "0" * 64, "size_bytes": 1}}),
    )


def link_outside(bundle: Path) -> None:
    outside = bundle.parent / "outside.json"
    (bundle / "tokenizer.json").rename(outside)
    (bundle / "tokenizer.json").symlink_to(outside)


BAD_BUNDLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "half-written": (remove("manifest.json"), "half-written"),
    "a file missing": (remove("sam_decoder.onnx"), "sam_decoder.onnx is missing"),
    "a file changed": (change_a_byte, "unet.onnx.data was changed"),
    "escaping": (escape, "outside the bundle"),
    "linked outside": (link_outside, "outside the bundle"),
    "newer": (
        lambda bundle: edit_manifest(bundle, lambda document: document.update(format_version=99)),
        "bundle format 99",
    ),
}


@pytest.mark.parametrize("verb", ["inspect", "segment", "check"])
@pytest.mark.parametrize("name", BAD_BUNDLES)
def test_a_bundle_that_cannot_be_trusted_is_refused_by_every_verb(
    name: str, verb: str, mini_bundle: Path, scene: Image.Image, tmp_path: Path, refused: Callable[..., str]
) -> None:
    damage, said = BAD_BUNDLES[name]
    bundle, photo = copy_of(mini_bundle, tmp_path / "bundle"), tmp_path / "photo.png"
    scene.save(photo)
    damage(bundle)
    rest = [photo, "the mug"] if verb == "segment" else []
    assert said in refused(verb, bundle, *rest)


def test_a_forgotten_bundle_and_a_swapped_one_are_named_with_the_command_that_was_meant(
    tmp_path: Path, scene: Image.Image, refused: Callable[..., str]
) -> None:
    photo = tmp_path / "a photo.png"
    scene.save(photo)
    forgotten = refused("segment", photo, "the red mug")
    assert f"got no bundle: {photo} is a file" in forgotten
    assert f"refdiff segment mini '{photo}' 'the red mug'" in forgotten
    swapped = refused("segment", photo, "mini", "the mug")
    assert "bundle and image are swapped" in swapped
    assert f"refdiff segment mini '{photo}' 'the mug'" in swapped
    assert "or use the built-in one: mini" in refused("segment", tmp_path / "bundel", photo, "the mug")


@pytest.mark.parametrize("verb", ["inspect", "check"])
def test_a_bundle_that_is_not_there_is_refused_with_what_makes_one(
    verb: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "make one with: refdiff export" in refused(verb, tmp_path / "nothing")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--variant", "fast"), "unknown variant 'fast'; choose one of: official, paper, edge"),
        (("--mode", "half"), "unknown mode 'half'; choose one of: gen, gen+seg, disc+seg, full"),
        (("--backend", "abacus"), "unknown back-end 'abacus'; choose one of: auto"),
        (("--variant", "paper"), "no exported graph has"),
        (("--threads", "0"), "got 0 threads, expected 1 to "),
        (("--threads", "5000"), "the number of cores; leave the option out"),
        (("--focus", "elephant"), "focus word 'elephant'"),
        (("-o", "out.jpg"), "expected a name that ends in .png"),
        (("-o", "nowhere/out.png"), "nowhere is not a folder"),
        (("-o", "same.png", "--overlay", "same.png"), "different names"),
    ],
)
def test_an_option_that_cannot_be_used_names_the_choices(
    option: tuple[str, ...], said: str, mini_bundle: Path, scene: Image.Image, tmp_path: Path, refused: Any
) -> None:
    scene.save(tmp_path / "photo.png")
    assert said in refused("segment", mini_bundle, tmp_path / "photo.png", "the mug", *option)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sd99",), "unknown model 'sd99'; choose one of: mini"),
        (("--precision", "int2"), "unknown precision 'int2'"),
    ],
)
def test_an_unknown_model_or_precision_is_refused_before_anything_is_loaded(
    arguments: tuple[str, ...], said: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert said in refused("export", *arguments, "-o", tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_export_onto_something_that_exists_is_refused_at_once(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "exists" in refused("export", "-o", tmp_path)


def test_a_missing_back_end_is_exit_code_3_with_the_extra_to_install(
    mini_bundle: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "refdiff.engines.ort", raising=False)
    monkeypatch.delattr("refdiff.engines.ort", raising=False)
    assert "pip install '.[cpu]'" in refused("check", mini_bundle, code=3)


def test_a_missing_torch_is_exit_code_3_with_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("safetensors")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "refdiff.miniature.stack", raising=False)
    monkeypatch.delattr("refdiff.miniature.stack", raising=False)
    line = refused("export", "-o", tmp_path / "bundle", code=3)
    assert "needs torch" in line
    assert "pip install '.[export]'" in line


def test_a_broken_installation_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from refdiff.contracts.optional import require_export

    with pytest.raises(ModuleNotFoundError, match="no_such_room"), require_export("a test"):
        import_module("refdiff.no_such_room")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux's read-only /sys")
@pytest.mark.parametrize("verb", ["segment", pytest.param("demo", marks=pytest.mark.slow)])
def test_a_read_only_place_is_named(
    verb: str, mini_bundle: Path, scene: Image.Image, tmp_path: Path, refused: Callable[..., str]
) -> None:
    scene.save(tmp_path / "photo.png")
    if verb == "segment":
        line = refused("segment", mini_bundle, tmp_path / "photo.png", "the mug", "-o", "/sys/out.png")
    else:
        line = refused("demo", "--bundle", "mini", "--mode", "gen", "-o", "/sys/out")
    assert "cannot" in line
    assert "/sys/out" in line


FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))  # no file may grow beyond it, as on a disk that is full
from refdiff.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX's limits")
@pytest.mark.slow
@pytest.mark.parametrize("verb", ["segment", "demo"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    verb: str, mini_bundle: Path, scene: Image.Image, tmp_path: Path
) -> None:
    photo, place = tmp_path / "photo.png", tmp_path / "place"
    scene.save(photo)
    place.mkdir()
    command = {
        "segment": ["segment", mini_bundle, photo, "the mug", "-o", place / "out.png"],
        "demo": ["demo", "--bundle", "mini", "--mode", "gen", "-o", place / "out"],
    }[verb]
    process = subprocess.run(
        [sys.executable, "-B", "-c", FULL_DISK, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2, process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: cannot write")
    assert list(place.iterdir()) == []


@pytest.mark.slow
@pytest.mark.needs_torch
def test_ctrl_c_during_an_export_leaves_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    from refdiff.export.bundle_export import export_bundle
    from refdiff.export.pipeline_feeds import PipelineFeeds
    from tests.support.calm_stack import calm_stack
    from tests.support.copied_graphs import copying

    stack = calm_stack()
    feeds = PipelineFeeds.rendered(stack, thorough=False)

    def stop(line: str) -> None:
        if line == "sam_decoder: exporting":  # a graph is written, the manifest is not
            assert list(tmp_path.rglob("sam_encoder.onnx"))
            signal.raise_signal(signal.SIGINT)

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            export_bundle(
                stack, tmp_path / "bundle", feeds=feeds, progress=stop, exporter=copying(tiny_bundle)
            )
    finally:
        signal.signal(signal.SIGINT, usual)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys
from refdiff.calibration.convert import convert
convert("mini", "fp16", output=sys.argv[1], progress=lambda line: print(line, flush=True))
"""


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_that_loads(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    output = tmp_path / "bundle"
    command = [sys.executable, "-c", KILLED, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert "sd_text: fp16" in process.stdout.readline()  # a graph is written, the manifest is not
        process.kill()
        process.wait(120)
    assert not output.exists()
    (left,) = (each for each in tmp_path.iterdir() if each.is_dir())  # the lock file lies next to it
    assert (left / "sd_text.onnx").is_file()
    with pytest.raises(BundleError, match=r"interrupted export left behind|half-written"):
        inspect(left)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("check", "mini", "--golden-only"),
        ("eval", "mini", "--count", "1"),
        ("eval", "mini", "--count", "1", "--dry-run"),
        ("eval", "mini", "--count", "1", "--audit", "release"),
        ("profile", "mini", "--runs", "1"),
        ("build", "mini", "--graph", "sd_text"),
        ("build", "mini", "--lint", "--graph", "sd_text"),
        ("inspect", "mini"),
    ],
    ids=" ".join,
)
def test_every_verb_that_opens_a_bundle_by_its_hash_refuses_another_one(
    refused: Callable[..., str], command: tuple[str, ...]
) -> None:
    said = refused(*command, "--expect", "0" * 64)
    assert f"got sha256 {inspect('mini').manifest.sha256}, expected {'0' * 64}" in said
