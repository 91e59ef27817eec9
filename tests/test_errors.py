"""Texts of errors, which quote foreign files and servers."""

import pytest

from refdiff.errors import BundleError, printable

CONTROLS = ("\x1b[2J", "\x07", "\x9b31m", "\r", "\u202e", "\u2028", "\x7f")


@pytest.mark.parametrize("text", ["plain", "left\tright\nbelow", "“é” ≥ 左", "\U0001f469\u200d\U0001f33e"])
def test_a_text_without_controls_is_unchanged(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_are_escaped_in_errors(control: str) -> None:
    text = str(BundleError(f"got {control} in a name"))
    assert control not in text
    assert "\\" in text


def test_a_lone_surrogate_of_a_path_can_be_encoded() -> None:
    assert printable("x\udcff").encode() == b"x\\udcff"
