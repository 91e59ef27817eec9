"""Pickles are interpreted, not executed: opcodes that torch does not write are refused."""

import io
import pickle
import pickletools
from typing import Any

import pytest

from refdiff.models.pickled import ForbiddenError, Inert, Name, ScriptObject, read_pickle


def read(content: bytes) -> Any:
    return read_pickle(io.BytesIO(content)).value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [None, True, -7, 2**70, 1.5, "é", (1,), (1, 2, 3, 4), [], [1, [2]], {"a": {"b": ()}, 3: None}, ["x"] * 3],
    ids=repr,
)
def test_plain_values_are_what_the_standard_library_reads(value: object, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


def test_an_object_that_is_shared_stays_shared() -> None:
    part = [1]
    first, second = read(pickle.dumps([part, part], 2))
    assert first is second


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'echo'\ntR.",
        b"\x80\x02cposix\nsystem\nX\x01\x00\x00\x00x\x85R.",
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x00x\x85R.",
        b"\x80\x02cbuiltins\n__import__\n)R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"(ios\nsystem\n.",
        b"\x80\x02(cos\nsystem\no.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02crefdiff.models.pickled\nread_pickle\n.",
        b"\x80\x02c__torch__x\nX\n.",
    ],
)
def test_names_of_anything_else_are_refused(program: bytes) -> None:
    with pytest.raises(ForbiddenError, match="Unsupported"):
        read(program)


def test_settings_of_a_trainer_are_inert() -> None:
    program = b"\x80\x02cnumpy.core.multiarray\nscalar\n(K\x01K\x02tR}X\x01\x00\x00\x00aK\x01sb."
    assert read(program) == Inert("numpy.core.multiarray.scalar")
    assert read(b"\x80\x02}ctorch\nsave\nK\x01s.") == {Name("torch.save"): 1}


def test_the_state_of_a_name_is_not_changed() -> None:
    assert read(b"\x80\x02ctorch\nsave\n}X\x01\x00\x00\x00aK\x01sb.") == Name("torch.save")


def test_objects_of_torchscript_keep_their_attributes() -> None:
    module = read(b"\x80\x02c__torch__.a\nToy\n)\x81}X\x01\x00\x00\x00wK\x05sb.")
    assert isinstance(module, ScriptObject)
    assert (module.kind, module.state) == ("__torch__.a.Toy", {"w": 5})


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02.",
        b"\x80\x02K\x01",
        b"\x80\x02\x87.",
        b"\x80\x02K\x01\x86.",
        b"\x80\x02h\x05.",
        b"\x80\x02K\x01K\x02a.",
        b"\x80\x02K\x01(K\x02K\x03u.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02)R.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02t.",
        b"",
    ],
)
def test_a_damaged_program_raises_and_ends(program: bytes) -> None:
    with pytest.raises((IndexError, KeyError, TypeError, ValueError, EOFError)):
        read(program)


@pytest.mark.slow
def test_tuples_nested_far_deeper_than_the_stack_do_not_end_the_process() -> None:
    deep = b"\x80\x02)" + b"\x85" * 200_000
    assert isinstance(read(deep + b"."), tuple)
    with pytest.raises(TypeError, match="key is a tuple"):
        read(b"\x80\x02}" + deep[2:] + b"K\x01s.")


def test_a_place_in_the_memo_takes_no_memory_in_front_of_it() -> None:
    assert read(b"\x80\x02K\x01r\xff\xff\xff\x7f.") == 1


@pytest.mark.slow
def test_a_program_without_end_is_cut() -> None:
    with pytest.raises(ForbiddenError, match="more than"):
        read(b"\x80\x02" + b"N" * 2_100_000 + b".")


def test_a_string_longer_than_the_file_takes_no_memory() -> None:
    with pytest.raises((ValueError, EOFError)):
        read(b"\x80\x02X\xff\xff\xff\x7fabc.")


def test_every_opcode_is_read_or_refused() -> None:
    for opcode in pickletools.opcodes:
        with pytest.raises((ForbiddenError, IndexError, KeyError, TypeError, ValueError, EOFError)):
            read(b"\x80\x02" + opcode.code.encode("latin-1") + b"\x00")
