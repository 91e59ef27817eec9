"""Which models may be asked for, and what the stack of them is called; no torch."""

import dataclasses
from pathlib import Path

import pytest

from refdiff.errors import InputError
from refdiff.export.export import export
from refdiff.models.choice import MODELS, ModelChoice

PARTS = ("diffusion", "vae", "sam", "sam_encoder", "clip")


def refusal(choice: ModelChoice) -> str:
    with pytest.raises(InputError) as caught:
        choice.check()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", MODELS)
def test_every_named_model_may_be_asked_for_and_keeps_its_name(name: str) -> None:
    choice = ModelChoice(name=name)
    choice.check()
    assert choice.title == name
    assert choice.built_in is (name in {"mini", "mini-edge"})


def test_unknown_taps_are_refused_with_the_known_ones() -> None:
    assert "unknown --taps 'up'; choose one of: all, down" in refusal(ModelChoice(name="refdiff", taps="up"))


def test_the_miniature_is_the_default() -> None:
    assert ModelChoice() == ModelChoice(name="mini")


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    message = refusal(ModelChoice(name="sdxl"))
    assert "'sdxl'" in message
    assert all(name in message for name in MODELS)


@pytest.mark.parametrize("part", PARTS)
def test_an_exchanged_part_shows_in_the_name(part: str) -> None:
    choice = dataclasses.replace(ModelChoice(name="refdiff"), **{part: "here.safetensors"})
    choice.check()
    assert choice.title == "refdiff-custom"


def test_a_size_a_seed_or_a_folder_leaves_the_name_alone() -> None:
    assert ModelChoice(name="refdiff-vitb", size=768).title == "refdiff-vitb"
    assert ModelChoice(name="refdiff-vitb", checkpoints=Path("c"), offline=True).title == "refdiff-vitb"
    assert ModelChoice(name="refdiff-vitb", random_weights=True, seed=2).title == "refdiff-vitb"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("diffusion", "x"),
        ("vae", "x"),
        ("sam", "x"),
        ("sam_encoder", "x"),
        ("taps", "down"),
        ("clip", "x"),
        ("size", 512),
        ("prediction", "epsilon"),
        ("clip_activation", "gelu"),
        ("random_weights", True),
        ("checkpoints", Path("x")),
    ],
)
def test_the_miniature_takes_no_option_of_the_others(option: str, value: object) -> None:
    message = refusal(dataclasses.replace(ModelChoice(), **{option: value}))
    assert f"--{option.replace('_', '-')}" in message
    assert "refdiff-vitb" in message


def test_the_miniature_may_be_set_to_stay_offline_as_it_always_does() -> None:
    ModelChoice(offline=True).check()


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("name", MODELS)
def test_a_seed_without_random_weights_is_refused(name: str, seed: int) -> None:
    assert f"--seed {seed}" in refusal(ModelChoice(name=name, seed=seed))


@pytest.mark.parametrize(
    ("option", "value"), [("prediction", "epsilon"), ("clip_activation", "gelu"), ("checkpoints", Path("x"))]
)
def test_random_weights_take_nothing_that_describes_a_checkpoint(option: str, value: object) -> None:
    choice = ModelChoice(name="refdiff", random_weights=True, seed=1)
    choice.check()
    assert "--random-weights" in refusal(dataclasses.replace(choice, **{option: value}))


def test_random_weights_take_architectures_as_parts() -> None:
    choice = ModelChoice(
        name="refdiff", random_weights=True, diffusion="sd21", sam="vit_l", clip="vit_l_14", size=768
    )
    choice.check()
    assert choice.title == "refdiff-custom"


def test_an_export_checks_its_choice_before_it_looks_at_the_output(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown model 'sdxl'"):
        export("sdxl", output=tmp_path)
    with pytest.raises(InputError, match="unknown precision 'int4'"):
        export(ModelChoice(), precision="int4", output=tmp_path)
    assert list(tmp_path.iterdir()) == []
