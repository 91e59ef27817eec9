from pathlib import Path

import pytest

from refdiff.contracts.json_fields import as_list, as_number, as_table, as_text, as_whole, read_json
from refdiff.errors import EngineError


def test_a_value_of_the_right_type_comes_back():
    assert as_text("a", "x") == "a"
    assert as_whole(3, "x", least=0) == 3
    assert as_number(3, "x") == 3.0
    assert as_list((1, 2), "x") == [1, 2]
    assert as_table({"a": 1}, "x") == {"a": 1}


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (as_text, 5, "text"),
        (as_whole, True, "a whole number"),
        (as_whole, 1.0, "a whole number"),
        (lambda value, name: as_whole(value, name, least=0), -1, "a whole number"),
        (as_number, False, "a number"),
        (as_number, "3", "a number"),
        (as_list, "ab", "a list"),
        (as_table, [], "an object with names"),
    ],
)
def test_another_type_is_refused_by_name(read, value, expected):
    with pytest.raises(TypeError) as caught:
        read(value, "the field")
    assert str(caught.value) == f"the field is {value!r}, expected {expected}"


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_a_file_that_is_not_json_is_refused_with_the_advice(tmp_path: Path, content: bytes):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"a\.json is not readable JSON \(.*\); build again"):
        read_json(path, EngineError, "build again")
