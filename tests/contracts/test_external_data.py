"""Where a graph says that its weights are."""

import struct

import pytest

from refdiff.contracts.external_data import DataReference, find_external_data
from tests.support.fuzzing import fuzz


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def tensor(**entries: str) -> bytes:
    external = b"".join(
        field(13, field(1, key.encode()) + field(2, value.encode())) for key, value in entries.items()
    )
    return varint(2 << 3) + varint(1) + field(8, b"weight") + external + varint(14 << 3) + varint(1)


WEIGHT = tensor(location="a.data", offset="4", length="8")
PLACES = {
    "initializer": field(7, field(5, WEIGHT)),
    "node": field(7, field(1, field(5, field(5, WEIGHT)))),
    "tensors": field(7, field(1, field(5, field(10, WEIGHT)))),
    "branch": field(7, field(1, field(5, field(6, field(5, WEIGHT))))),
    "sparse": field(7, field(15, field(1, WEIGHT))),
    "function": field(25, field(7, field(5, field(5, WEIGHT)))),
    "training": field(20, field(1, field(5, WEIGHT))),
}


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_a_tensor_can_be(place: str) -> None:
    assert find_external_data(PLACES[place]) == (DataReference("a.data", 4, 8),)


def test_weights_inside_the_file_are_no_reference() -> None:
    inside = varint(2 << 3) + varint(1) + field(9, struct.pack("<f", 1.0))
    assert find_external_data(field(7, field(5, inside))) == ()


def test_every_stated_location_counts() -> None:
    twice = tensor(location="a.data") + tensor(location="../secret")
    found = find_external_data(field(7, field(5, twice)))
    assert {each.location for each in found} == {"a.data", "../secret"}


@pytest.mark.parametrize("entries", [{"offset": "-1"}, {"length": "1e9"}, {"offset": "9" * 30}])
def test_an_offset_that_is_no_number_is_refused(entries: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected a whole number"):
        find_external_data(field(7, field(5, tensor(location="a", **entries))))


def test_a_file_that_is_cut_off_is_refused() -> None:
    with pytest.raises(ValueError, match="cut off"):
        find_external_data(PLACES["initializer"][:-3])


def test_any_file_is_read_or_refused() -> None:
    assert fuzz(find_external_data, list(PLACES.values()), seed=3, allowed=ValueError).refused
