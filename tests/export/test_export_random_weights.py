"""An export of random weights: drawn from a seed that is recorded, and used only where that is allowed."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from refdiff.cli import main
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.stack import COMPONENTS, ModelStack
from refdiff.miniature.scenes import render_scene
from refdiff.models.choice import ModelChoice, load_choice

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")


from refdiff.models.diffusion import SD15
from refdiff.models.stacks import random_stack
from tests.support.calm_stack import calm_stack
from tests.support.copied_graphs import copying
from tests.support.own_checkpoints import CLIP, LEVELS, PHRASE, SAM, refusal, write

pytestmark = [pytest.mark.needs_torch, pytest.mark.slow]


SMALL_SD = dataclasses.replace(
    SD15,
    text={
        **SD15.text,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    },
    vae={**SD15.vae, "block_out_channels": (32,) * 4, "layers_per_block": 1},
    unet={**SD15.unet, **LEVELS, "cross_attention_dim": 64, "attention_head_dim": 4},
)


@pytest.fixture(scope="module")
def random_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny stack as if drawn from seed 3, with the graphs that `tiny_bundle` has of it."""
    tiny, output = calm_stack(), tmp_path_factory.mktemp("random") / "bundle"
    stack = ModelStack(
        spec=tiny.spec,
        tokenizer_json=tiny.tokenizer_json,
        sources=dict.fromkeys(tiny.sources, "random, seed 3"),
        loaders={name: partial(getattr, tiny, name) for name in COMPONENTS},
        random_seed=3,
    )
    write(stack, output, copying(tiny_bundle))
    return output


def drawn_stack(seed: int) -> ModelStack:
    """The stack that an export of random weights is given, smaller."""
    return random_stack("refdiff", diffusion=SMALL_SD, sam=SAM, clip=CLIP, image_size=64, seed=seed)


def test_random_weights_are_recorded_with_their_seed(random_bundle: Path) -> None:
    manifest, drawn = open_bundle(random_bundle).manifest, drawn_stack(3)
    assert drawn.spec.name == "refdiff"
    choice = ModelChoice(name="refdiff", random_weights=True, size=64, seed=3)
    chosen = load_choice(choice, "the test")
    assert manifest.random_seed == drawn.random_seed == chosen.random_seed == 3
    assert chosen.sources == drawn.sources
    assert set(manifest.sources.values()) == set(drawn.sources.values()) == {"random, seed 3"}


def test_a_seed_draws_its_own_weights_for_every_model() -> None:
    first, again, second = (drawn_stack(seed) for seed in (3, 3, 4))
    assert [stack.random_seed for stack in (first, again, second)] == [3, 3, 4]
    for component in COMPONENTS:
        ours, same, other = (getattr(stack, component).state_dict() for stack in (first, again, second))
        assert all(torch.equal(weight, same[name]) for name, weight in ours.items())
        matrices = [(name, weight) for name, weight in ours.items() if weight.ndim > 1]
        assert not any(torch.equal(weight, other[name]) for name, weight in matrices if weight.std() > 0)


def test_random_weights_answer_only_where_that_is_allowed(
    random_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(render_scene(1_000_007).image).save(tmp_path / "table.png")
    question = ["segment", str(random_bundle), str(tmp_path / "table.png"), PHRASE]
    assert "--allow-random-weights" in refusal(question, 2, capsys)
    assert main([*question, "--allow-random-weights", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["random_weights"] is True


def test_inspect_says_that_the_weights_are_random(
    random_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(random_bundle)]) == 0
    assert "RANDOM, seed 3" in capsys.readouterr().out
