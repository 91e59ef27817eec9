"""A user's own checkpoints, from the command line to an answer: exported, opened, asked, and equal to torch.

Small random models in the published formats, with CLIP's whole vocabulary. Everything goes through
`refdiff.cli.main`, and the torch reference is asked the same on the same files.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refdiff.cli import main
from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import GRAPHS
from refdiff.contracts.options import options_for
from refdiff.engines.factory import open_sessions
from refdiff.loading import segmenter_of
from refdiff.miniature.scenes import render_scene
from refdiff.models.choice import ModelChoice, load_choice

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")

from diffusers import UNet2DConditionModel
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from refdiff.models.clip import ClipSizes, build_clip, load_clip
from refdiff.models.diffusion import load_diffusion
from refdiff.models.sam import build_sam, load_sam
from refdiff.models.stacks import VOCABULARY, make_stack, random_module, scatter_masks
from refdiff.reference.pipeline import Reference
from tests.support.copied_graphs import copying
from tests.support.ldm_layout import original_state
from tests.support.made_once import EXPORT_SOURCES, made_once
from tests.support.own_checkpoints import CLIP, LEVELS, PHRASE, SAM, refusal, write
from tests.support.small_diffusion import SMALL, small_model

pytestmark = [pytest.mark.needs_torch, pytest.mark.slow]


HERE = (
    "tests/export/test_bring_your_own.py",
    "tests/support/copied_graphs.py",
    "tests/support/ldm_layout.py",
    "tests/support/own_checkpoints.py",
    "tests/support/small_diffusion.py",
)
"""What decides the checkpoints."""
UINT8_LEVEL = 1 / 255
"""`official` truncates its map to bytes, so a difference in the last bit may cost one level."""
STRAY_PIXELS = 1e-3
"""Share of the masks that may fall on the other side of their threshold by rounding alone."""


def random_clip(sizes: ClipSizes = CLIP) -> Any:
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(4)
        clip = build_clip(sizes)
        for parameter in clip.parameters():
            parameter.normal_(std=0.2)
    return clip


def random_sam() -> Any:
    """Its masks are small, at several places, with steep borders; about half pass the threshold on IoU."""
    sam = scatter_masks(random_module(partial(build_sam, SAM), seed=0, name="sam"))
    with torch.no_grad():
        sam.mask_decoder.iou_prediction_head.layers[-1].bias += 1.0
        for network in sam.mask_decoder.output_hypernetworks_mlps:
            last = network.layers[-1]
            last.weight *= 4.0
            last.bias *= 4.0
            last.bias[0] /= 4.5
    return sam


def text_encoder(name: str) -> Any:
    sizes = SMALL[name]
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=sizes.text_width,
        intermediate_size=2 * sizes.text_width,
        num_hidden_layers=2,
        num_attention_heads=sizes.text_width // 64,
        hidden_act=sizes.activation,
        initializer_factor=10.0,  # else all tokens look alike, and so do all maps
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(5)
        return CLIPTextModel(config).eval().requires_grad_(requires_grad=False)


def unet_of(name: str) -> Any:
    own = {
        "sd1": {"attention_head_dim": 8},
        "sd2": {"attention_head_dim": (1,) * 3, "use_linear_projection": True},
    }
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(6)
        return UNet2DConditionModel(
            cross_attention_dim=SMALL[name].text_width, **own[name], **LEVELS
        ).requires_grad_(requires_grad=False)


def write_diffusion(file: Path, name: str) -> None:
    """One file in the original layout, of the generation `name`."""
    modules = {"unet": unet_of(name), "vae": small_model("tiny")["vae"], "text_encoder": text_encoder(name)}
    tensors = original_state(**modules, open_clip=name == "sd2")
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, file)


def write_clip(folder: Path, sizes: ClipSizes = CLIP) -> None:
    """A folder as open_clip's models have on the hub."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": sizes.vocabulary, "width": 64, "heads": 1, "layers": 1}
    model = {"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    save_file(dict(random_clip(sizes).state_dict()), folder / "open_clip_model.safetensors")


Made = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest) -> Made:
    """Folders that are kept between runs: name and maker -> folder."""
    cache, sources = request.config.cache, (*EXPORT_SOURCES, "src/refdiff/models", *HERE)
    return lambda name, make: made_once(cache, name, sources=sources, make=make)


@pytest.fixture(scope="module")
def files(made: Made) -> Path:
    """sd1.safetensors, sd2.safetensors, sam.pth, clip/ and a picture that is not square."""
    return made("checkpoints", write_files)


def write_files(folder: Path) -> None:
    folder.mkdir()
    for name in ("sd1", "sd2"):
        write_diffusion(folder / f"{name}.safetensors", name)
    torch.save(random_sam().state_dict(), folder / "sam.pth")
    write_clip(folder / "clip")
    Image.fromarray(render_scene(1_000_007).image).save(folder / "table.png")


def command(files: Path, output: Path, generation: str = "sd1", **parts: Path) -> list[str]:
    """`refdiff export` of the files, some of them exchanged."""
    own = {"diffusion": files / f"{generation}.safetensors", "sam": files / "sam.pth", "clip": files / "clip"}
    named = (word for part, path in {**own, **parts}.items() for word in (f"--{part}", str(path)))
    return ["export", "refdiff", *named, "--size", "64", "--offline", "--output", str(output)]


def trained(files: Path, generation: str, prediction: str | None = None) -> Any:
    """The torch stack of the same files."""
    return make_stack(
        "refdiff-custom",
        load_diffusion(files / f"{generation}.safetensors", image_size=64, prediction=prediction),
        load_sam(files / "sam.pth"),
        load_clip(files / "clip"),
    )


@pytest.fixture(scope="module")
def first(files: Path, made: Made) -> Path:
    """The bundle of a first-generation model."""
    return made("first", lambda output: export(command(files, output)))


@pytest.fixture(scope="module")
def second(files: Path, first: Path, made: Made) -> Path:
    """The bundle of a second-generation model, that predicts the velocity; the rest is as in `first`."""
    choice = ModelChoice(
        name="refdiff",
        diffusion=str(files / "sd2.safetensors"),
        sam=str(files / "sam.pth"),
        clip=str(files / "clip"),
        size=64,
        prediction="v_prediction",
        offline=True,
    )
    exporter = copying(first, exported=("sd_text", "unet"))
    return made("second", lambda output: write(load_choice(choice, "the test"), output, exporter))


def export(arguments: list[str]) -> None:
    assert main(arguments) == 0


def assert_agrees_with_the_reference(bundle: Path, stack: Any, variant: str) -> None:
    """Ask both one question; a grid of 8 x 8 points is enough."""
    opened = open_bundle(bundle)
    assert opened.spec == stack.spec
    options = options_for(stack.spec, variant=variant)
    proposals = dataclasses.replace(options.proposals, points_per_side=8)
    options = dataclasses.replace(options, proposals=proposals)
    image = render_scene(1_000_007).image
    reference = Reference(stack=stack, options=options).segment(image, PHRASE)
    with segmenter_of(opened, open_sessions(opened, backend="ort-cpu"), options) as segmenter:
        runtime = segmenter.segment(segmenter.encode(image), PHRASE)

    ours, theirs = reference.candidates, runtime.candidates
    assert len(ours) == len(theirs) > 1  # several, or nothing is chosen
    assert (ours.masks != theirs.masks).mean() < STRAY_PIXELS
    np.testing.assert_array_equal(ours.kept, theirs.kept)
    np.testing.assert_allclose(ours.predicted_iou, theirs.predicted_iou, atol=1e-3)
    assert reference.heat is not None
    assert runtime.heat is not None
    assert reference.heat.std() > 0.05  # the map says something
    np.testing.assert_allclose(reference.heat, runtime.heat, atol=2 * UINT8_LEVEL)
    for field in dataclasses.fields(reference.scores):
        atol = UINT8_LEVEL if (field.name, variant) == ("generative", "official") else 1e-3
        parts = (getattr(result.scores, field.name) for result in (reference, runtime))
        np.testing.assert_allclose(*parts, atol=atol, rtol=0, err_msg=field.name)
    assert reference.index is not None
    assert (reference.index, reference.root) == (runtime.index, runtime.root)
    assert (reference.mask != runtime.mask).mean() < STRAY_PIXELS


def test_the_manifest_names_the_files_by_their_hashes_and_the_closeness_of_every_graph(
    files: Path, first: Path
) -> None:
    manifest = open_bundle(first).manifest
    diffusion = hash_file(files / "sd1.safetensors")
    assert manifest.spec.name == "refdiff-custom"
    assert manifest.spec.diffusion.image_size == 64
    assert dict(manifest.sources) == {
        **dict.fromkeys(("text_encoder", "vae", "unet"), diffusion),
        "sam": hash_file(files / "sam.pth"),
        "clip": hash_file(files / "clip" / "open_clip_model.safetensors"),
    }
    assert manifest.random_seed is None
    for name in GRAPHS:
        outputs = {output.name for output in manifest.graphs[name].outputs}
        parity = manifest.graphs[name].parity
        assert parity.keys() == outputs
        assert all(0 <= measured.error < 1e-4 for measured in parity.values())
        assert all(measured.correlation > 0.9999 for measured in parity.values())


def test_the_bundle_answers_from_the_command_line(
    files: Path, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mask.png"
    assert main(["segment", str(first), str(files / "table.png"), PHRASE, "-o", str(output), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["random_weights"]) == ("refdiff-custom", False)
    assert said["matched"] is (said["reason"] is None)
    with Image.open(output) as opened:
        assert np.count_nonzero(np.asarray(opened)) == said["area_px"]


@pytest.mark.parametrize("variant", ["official", "edge"])
def test_a_first_generation_bundle_agrees_with_the_reference(files: Path, first: Path, variant: str) -> None:
    assert_agrees_with_the_reference(first, trained(files, "sd1"), variant)


@pytest.mark.parametrize("variant", ["official", "edge"])
def test_a_velocity_predicting_bundle_agrees_with_the_reference(
    files: Path, second: Path, variant: str
) -> None:
    stack = trained(files, "sd2", "v_prediction")
    assert (stack.spec.diffusion.prediction, stack.spec.diffusion.padding) == ("v_prediction", "zero")
    assert_agrees_with_the_reference(second, stack, variant)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["mini", "--sam", "x"], ("--sam", "refdiff-vitb")),
        (["refdiff", "--random-weights", "--prediction", "epsilon"], ("--random-weights", "--prediction")),
        (["refdiff", "--random-weights", "--sam", "vit_x"], ("vit_x", "vit_b, vit_l, vit_h")),
        (["refdiff", "--random-weights", "--size", "500"], ("500", "--size 512")),
        (["refdiff", "--seed", "1"], ("--seed 1", "--random-weights")),
        (["nonsense"], ("nonsense", "mini, mini-edge, refdiff")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_choice_that_cannot_be_is_refused_in_one_line(
    arguments: list[str], expected: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(["export", *arguments, "-o", str(tmp_path / "bundle")], 2, capsys)
    assert all(words in line for words in expected)
    assert list(tmp_path.iterdir()) == []


def test_a_second_generation_file_does_not_say_what_it_predicts(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(command(files, tmp_path / "bundle", "sd2"), 2, capsys)
    assert "--prediction" in line
    assert "v_prediction" in line
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_fails_late_leaves_nothing_behind(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = torch.load(files / "sam.pth", weights_only=True)
    key = "mask_decoder.iou_token.weight"
    tensors[key][0, 0] = torch.nan  # only seen when the weights are read, where the bundle is begun
    torch.save(tensors, tmp_path / "sam.pth")
    output = tmp_path / "out" / "bundle"
    output.parent.mkdir()
    line = refusal(command(files, output, sam=tmp_path / "sam.pth"), 2, capsys)
    assert key in line
    assert "NaN" in line
    assert list(output.parent.iterdir()) == []


def test_offline_and_nothing_here_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    arguments = ["refdiff", "--offline", "--checkpoints", str(fetched), "-o", str(tmp_path / "bundle")]
    line = refusal(["export", *arguments], 3, capsys)
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in line
    assert "put model_index.json, scheduler/scheduler_config.json and 8 more (refdiff fetch" in line
    assert str(fetched / "stable-diffusion-v1-5--stable-diffusion-v1-5") in line
    assert not (tmp_path / "bundle").exists()


def test_a_clip_of_another_vocabulary_is_refused(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "clip", dataclasses.replace(CLIP, vocabulary=120))
    line = refusal(command(files, tmp_path / "bundle", clip=tmp_path / "clip"), 2, capsys)
    assert "120 rows" in line
    assert str(VOCABULARY) in line
    assert not (tmp_path / "bundle").exists()


def test_a_damaged_file_is_refused_by_its_name(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (files / "sd1.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[: len(whole) // 2])
    line = refusal(command(files, tmp_path / "bundle", diffusion=cut), 2, capsys)
    assert "cut.safetensors" in line
    assert "damaged" in line
    assert list(tmp_path.iterdir()) == [cut]
