"""Read a pickle as data: no class or function that it names is imported or called.

In: the bytes of a pickle, as `torch.save` and TorchScript write them. Out: plain containers, and records for
everything else: `StoredTensor` for a tensor, `ScriptObject` for an object of TorchScript, `Inert` for an
object of a trainer. Opcodes and their arguments are parsed by the standard library's `pickletools`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

_MOST_OPCODES = 2_000_000
"""A full Stable Diffusion checkpoint with the state of its optimizer has about 300,000."""

_KEYS = (str, bytes, int, float, type(None))
"""Types of the keys of a dictionary; hashing a deeply nested tuple would end the process."""

_LARGEST_KEY = 1 << 60
"""Larger integers can be chosen so that all of them have one hash."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names."""

    text: str


@dataclass(frozen=True)
class Inert:
    """What an unused object was made by; its content is not kept."""

    kind: str


@dataclass(eq=False)
class ScriptObject:
    """An object of TorchScript."""

    kind: str
    state: Any = field(default=None, repr=False)
    """A dictionary of its attributes; anything else if the class has a `__setstate__`."""


@dataclass(frozen=True)
class Storage:
    """A piece of memory that tensors share."""

    key: str
    kind: str
    """Class of the storage, such as "torch.FloatStorage"."""
    elements: int


@dataclass(frozen=True)
class StoredTensor:
    """A strided view of a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str | None = None
    """Such as "torch.float8_e4m3fn", where the storage does not state it."""


@dataclass(frozen=True)
class Document:
    """Content of a pickle."""

    value: Any
    storages: Mapping[str, Storage]
    """By key; the first one where several share it."""


class ForbiddenError(Exception):
    """The pickle holds more than weights."""


_SCRIPT = "__torch__."
_STRIDED = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_TYPED = "torch._utils._rebuild_tensor_v3"
_WRAPPED = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_SUBCLASSED = "torch._tensor._rebuild_from_type_v2"
_ORDERED = "collections.OrderedDict"

_TRAINERS = (
    "torch.",
    "collections.",
    "_codecs.",
    "pytorch_lightning.",
    "lightning.",
    "omegaconf.",
    "numpy.",
    "argparse.Namespace",
    "typing.Any",
    "pathlib.",
    *(
        f"{module}.{kind}"
        for module in ("builtins", "__builtin__")
        for kind in ("dict", "list", "set", "int")
    ),
)
"""Start of the names that stand next to weights, for settings, metrics and callbacks; they become `Inert`."""


def read_pickle(stream: IO[bytes]) -> Document:
    """Read one pickle.

    Args:
        stream: is left after the pickle; `read` and `readline` must be bounded by its owner.

    Raises:
        ForbiddenError: it names a class or function that is not known to stand next to weights.
        Exception: it is damaged; random bytes raise almost anything.
    """
    machine = _Machine()
    return Document(machine.run(stream), machine.storages)


class _Machine:
    """The stack of the pickle's program. A mark is a list of its own, as in the standard library."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, stream: IO[bytes]) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= _MOST_OPCODES:
                raise ForbiddenError(f"it has more than {_MOST_OPCODES} opcodes")
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise EOFError

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in _SKIPPED:
            raise ForbiddenError(f"Unsupported opcode {name}")

    def mark(self, _: object) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _items(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def put(self, place: Any) -> None:
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def get(self, place: int) -> None:
        self._stack.append(self._memo[place])

    def tuple_of_marked(self, _: object) -> None:
        items = self._items()
        self._stack.append(tuple(items))

    def tuple_of(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) != count:
            raise IndexError
        self._stack[-count:] = [items]

    def append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise TypeError(f"cannot append to {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Inert):
            return
        if not isinstance(target, dict):
            raise TypeError(f"cannot set items of {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value

    def global_name(self, argument: str) -> None:
        self._stack.append(_checked_name(argument.replace(" ", ".", 1)))

    def stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError
        self._stack.append(_checked_name(f"{module}.{name}"))

    def new_object(self, _: object) -> None:
        self._stack.pop()  # the arguments
        kind = self._stack.pop()
        if not isinstance(kind, Name):
            raise TypeError
        self._stack.append(_new(kind.text))

    def reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise TypeError
        self._stack.append(_call(function.text, arguments))

    def build(self, _: object) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, ScriptObject):
            target.state = state

    def persistent(self, _: object) -> None:
        identity = self._stack.pop()
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise TypeError("a persistent object is no storage")
        _, kind, key, _, elements, *view = identity
        if not isinstance(kind, Name) or not isinstance(key, str | int) or not _are_counts([elements]):
            raise TypeError("a storage is not described as torch does")
        if view and view[0] is not None:
            raise TypeError("a storage is a view of another one, as before torch 0.4")
        storage = Storage(str(key), kind.text, elements)
        self.storages.setdefault(storage.key, storage)
        self._stack.append(storage)


_PUSHED = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "SHORT_BINSTRING", "BINSTRING"),
    }
)
_SKIPPED = frozenset({"PROTO", "FRAME"})
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_ACTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "TUPLE": _Machine.tuple_of_marked,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.append([machine._stack.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.append(machine._items())),
    "SETITEM": lambda machine, _: machine.set_items([machine._stack.pop(-2), machine._stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine._items()),
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "NEWOBJ": _Machine.new_object,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}


def _checked_name(text: str) -> Name:
    if not text.startswith((_SCRIPT, *_TRAINERS)):
        raise ForbiddenError(f"Unsupported global: GLOBAL {text}")
    return Name(text)


def _checked_key(key: Any) -> Any:
    if isinstance(key, Name | Inert):
        return key
    if not isinstance(key, _KEYS) or (isinstance(key, int) and abs(key) >= _LARGEST_KEY):
        raise TypeError(f"a dictionary's key is a {type(key).__name__}")
    return key


def _new(kind: str) -> Any:
    if kind.startswith(_SCRIPT):
        return ScriptObject(kind)
    return {} if kind == _ORDERED else Inert(kind)


def _call(function: str, arguments: tuple[Any, ...]) -> Any:
    """Return what a function of torch would rebuild; other functions make an `Inert`."""
    if function in _STRIDED:
        return _strided(*arguments[:4])
    if function == _TYPED:
        storage, offset, size, stride = arguments[:4]
        return _strided(storage, offset, size, stride, arguments[6])
    if function in _WRAPPED:
        return arguments[0]
    if function == _ORDERED and not arguments:
        return {}
    if function == _SUBCLASSED and isinstance(arguments[0], Name) and arguments[0].text != _SUBCLASSED:
        return _call(arguments[0].text, arguments[2])
    return Inert(function)


def _strided(storage: Any, offset: Any, size: Any, stride: Any, dtype: object = None) -> StoredTensor:
    sound = isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)
    if not sound or len(size) != len(stride) or not _are_counts([offset, *size, *stride]):
        raise TypeError("a tensor is not described as torch does")
    return StoredTensor(storage, offset, size, stride, dtype.text if isinstance(dtype, Name) else None)


def _are_counts(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 62 for value in values)
