"""Which combinations of model options make sense, decided before anything is read."""

from pathlib import Path

import pytest

from refdiff.api.models import MODELS, ModelChoice
from refdiff.errors import InputError


@pytest.mark.parametrize("name", MODELS)
def test_every_name_is_a_choice(name: str) -> None:
    ModelChoice(name=name).check()
    assert ModelChoice(name=name).title == name


def test_an_exchanged_part_shows_in_the_title() -> None:
    assert ModelChoice(name="refdiff", sam="vit_b.pth").title == "refdiff-custom"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "nonsense"}, "unknown model 'nonsense'; choose one of: mini, refdiff, refdiff-vitb"),
        ({"name": "mini", "sam": "x.pth"}, "the miniature takes no --sam"),
        ({"name": "mini", "size": 512}, "the miniature takes no --size"),
        ({"name": "mini", "random_weights": True}, "the miniature takes no --random-weights"),
        ({"name": "refdiff", "seed": 5}, "--seed 5 without --random-weights"),
        ({"name": "refdiff", "random_weights": True, "prediction": "epsilon"}, "reads no checkpoint"),
        ({"name": "refdiff", "random_weights": True, "checkpoints": Path()}, "reads no checkpoint"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelChoice(**options).check()  # type: ignore[arg-type]


def test_a_size_of_zero_is_a_size_and_not_the_default() -> None:
    assert ModelChoice(name="refdiff", size=0).size == 0
