"""Read a graph with its types, and check a written graph against its contract."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.errors import BundleError, InputError


def load_graph(path: Path) -> ir.Model:
    """Read a graph; its weights stay in the data file until they are used.

    onnx_ir refuses data files that have several hard links. Installers make such links: uv links a package's
    files to its cache. A data file inside the graph's own folder is read in any case, others never.

    Raises:
        BundleError: the graph is damaged, or a weight has another size than its shape.
    """
    return _load(path, ir.load)


def _load(path: Path, read: Callable[[Path], ir.Model]) -> ir.Model:
    try:
        model = read(path)
        is_linked = functools.cache(functools.partial(_is_linked_file, folder=path.parent.resolve()))
        for value in model.graph.initializers.values():
            _check_size(value.const_value)
            value.const_value = _readable(value.const_value, is_linked)
    except Exception as error:  # protobuf's and onnx_ir's exceptions share no base
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"{path} is not a graph that can be read ({said}); export again") from error
    return model


def _readable(tensor: ir.TensorProtocol | None, is_linked: Callable[[str], bool]) -> ir.TensorProtocol | None:
    """Return the tensor; one in a linked file of the folder is opened by the file's own path."""
    if not (isinstance(tensor, ir.ExternalTensor) and is_linked(str(tensor.path))):
        return tensor
    return ir.ExternalTensor(
        Path(tensor.path).resolve(),
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
    )


def _check_size(tensor: ir.TensorProtocol | None) -> None:
    if tensor is None:
        raise ValueError("a weight has no values")
    if not isinstance(tensor, ir.ExternalTensor):
        tensor.numpy()
    elif tensor.length not in (None, tensor.nbytes):
        raise ValueError(f"{tensor.name} takes {tensor.nbytes} bytes, got {tensor.length}")


def _is_linked_file(path: str, folder: Path) -> bool:
    file = Path(path).resolve()
    return file.is_relative_to(folder) and file.is_file() and file.stat().st_nlink > 1


def load_typed(path: Path) -> ir.Model:
    """Read a graph and infer the types and shapes that a converted bundle leaves out.

    Returns:
        The graph. Every tensor has a type and, where it can be inferred, a shape.
    """
    return _load(path, _read_typed)


def _read_typed(path: Path) -> ir.Model:
    """Infer before the graph is built: `ShapeInferencePass` would write it and build it once more."""
    proto = onnx.load(path, load_external_data=False)
    known = {value.name for value in (*proto.graph.value_info, *proto.graph.output)}
    if any(name not in known for node in proto.graph.node for name in node.output if name):
        proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=False)
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def serialized(model: ir.Model, folder: Path | None) -> bytes:
    """Return a graph for ONNX Runtime, which refuses absolute paths of data files.

    Args:
        model: a graph, read by this module or made.
        folder: its folder, which paths are made relative to; None if it has no data files.
    """
    proto = ir.serde.serialize_model(model)
    if folder is not None:
        for entry in (entry for tensor in proto.graph.initializer for entry in tensor.external_data):
            if entry.key == "location" and (path := Path(entry.value)).is_absolute():
                entry.value = path.relative_to(folder.resolve()).as_posix()
    return bytes(proto.SerializeToString())


def check_contract(path: Path, graph: GraphSpec) -> None:
    """Compare the inputs and outputs of a written file with the contract, name by name.

    Raises:
        InputError: they differ; the message gives the first difference.
    """
    written = ir.load(path).graph
    _check_tensors(path, "input", written.inputs, graph.inputs)
    _check_tensors(path, "output", written.outputs, graph.outputs)


def _check_tensors(
    path: Path, side: str, written: Sequence[ir.Value], expected: Sequence[TensorSpec]
) -> None:
    got = tuple(_tensor_spec(value) for value in written)
    if got == tuple(expected):
        return
    for mine, theirs in zip(expected, got, strict=False):
        if mine != theirs:
            raise InputError(
                f"{path.name}: got {side} {_format(theirs)}, expected {_format(mine)}; "
                "the model does not have the sizes its spec names"
            )
    raise InputError(f"{path.name}: got {len(got)} {side}s, expected {len(expected)}")


def _tensor_spec(value: ir.Value) -> TensorSpec:
    shape = (
        () if value.shape is None else tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    )
    dtype = "unknown" if value.dtype is None else str(value.dtype.numpy())
    return TensorSpec(value.name or "", dtype, shape)


def _format(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.dtype} {list(tensor.shape)}"
