"""The tensors that an ONNX file stores, without the data of large ones."""

import math
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

from quadranas.errors import QuadranasError, printable

Shape: TypeAlias = tuple[int, ...]
LARGEST = 10**15
"""Maximum number of elements of a plausible tensor; larger shapes are ignored."""

SMALL = 1024
"""Maximum number of elements of a constant that is kept, such as the target of a Reshape."""

DATA_FIELDS = (
    *("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data"),
    *("uint64_data", "external_data", "data_location"),
)


def refusal(path: Path, fault: str, hint: str = "") -> QuadranasError:
    """The error for a file that cannot be read."""
    return QuadranasError(
        f"cannot read {path}: {fault}", hint or "Export the network to ONNX again."
    )


def names_of(names: Iterable[str | bytes]) -> tuple[str, ...]:
    """Names as text. Protobuf returns names that are not UTF-8 as bytes.

    Raises:
        UnicodeDecodeError: a name is not UTF-8.
    """
    return tuple(name if isinstance(name, str) else name.decode() for name in names)


def drop_weights(onnx: Any, model: Any, path: Path) -> None:
    """Remove large tensors in place, to make the steps that follow fast; their shapes remain.

    Raises:
        QuadranasError: external weights are missing, truncated or outside the file's folder.
    """
    for tensor in _stored_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _open_external(onnx, tensor, path)
        elif _is_truncated(onnx, tensor):
            raise refusal(path, f"its tensor {printable(*names_of([tensor.name]))!r} is truncated")
        if math.prod(tensor.dims) > SMALL:
            clear_data(tensor)


def clear_data(tensor: Any) -> None:
    """Remove the elements of a tensor."""
    for field in DATA_FIELDS:
        tensor.ClearField(field)


def nested_graphs(node: Any) -> list[Any]:
    """The graphs inside an operator, such as the branches of an If."""
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return graphs + [graph for attribute in node.attribute for graph in attribute.graphs]


def _stored_tensors(model: Any) -> Iterator[Any]:
    """All tensors of a model, including those of its functions and of nested graphs."""
    yield from model.graph.initializer
    nodes = list(model.graph.node)
    for function in model.functions:
        nodes += function.node
    while nodes:
        node = nodes.pop()
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for graph in nested_graphs(node):
            yield from graph.initializer
            nodes += graph.node


def _open_external(onnx: Any, tensor: Any, path: Path) -> None:
    """Check that a tensor's file exists and is long enough; load a small tensor from it.

    The location is a path below the folder of the ONNX file. Links on that path are followed,
    as caches of models use them; a location cannot name a place outside the folder itself.
    """
    keys = {entry.key: entry.value for entry in tensor.external_data}
    location = keys.get("location", "")
    if not _is_inside(location):
        raise refusal(
            path,
            f"its weights file {printable(location)!r} is not below the folder of the ONNX file",
            "Put the weights file into the same folder, and export with its name alone.",
        )
    try:
        offset, length = (int(keys.get(key) or 0) for key in ("offset", "length"))
        file = path.parent / location
        status = file.stat()
        whole = stat.S_ISREG(status.st_mode) and min(offset, length) >= 0
        needed = _num_bytes(onnx, tensor)
        whole = whole and (not length or length >= needed)
        whole = whole and status.st_size >= offset + max(length, needed)
        if whole and math.prod(tensor.dims) <= SMALL:
            _load(onnx, tensor, file, offset)
    except (OSError, ValueError):  # no such file, or numbers that are none
        whole = False
    if not whole:
        raise refusal(
            path,
            f"its weights file {printable(location)!r} is missing or truncated",
            "Put that file into the same folder, or export to a single file.",
        )


def _is_inside(location: str) -> bool:
    """Whether a location is relative, on every system, and never leads upward."""
    return bool(location) and not any(
        path.anchor or ".." in path.parts
        for path in (PurePosixPath(location), PureWindowsPath(location))
    )


def _num_bytes(onnx: Any, tensor: Any) -> int:
    """The number of bytes of a tensor's elements; 0 for types without a fixed size."""
    try:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        return 0
    if kind.itemsize == 1 and kind.name not in ("bool", "int8", "uint8"):
        return 0  # several elements can share a byte
    return 0 if kind.hasobject else math.prod(tensor.dims) * int(kind.itemsize)


def _is_truncated(onnx: Any, tensor: Any) -> bool:
    """Whether a tensor inside the file has less data than its shape needs."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data) < _num_bytes(onnx, tensor)
    kinds = onnx.TensorProto
    fields = {kinds.FLOAT: "float_data", kinds.DOUBLE: "double_data", kinds.INT64: "int64_data"}
    field = fields.get(tensor.data_type)
    return field is not None and len(getattr(tensor, field)) < math.prod(tensor.dims)


def _load(onnx: Any, tensor: Any, file: Path, offset: int) -> None:
    """Read the elements of a small tensor."""
    with file.open("rb") as opened:
        opened.seek(offset)
        content = opened.read(_num_bytes(onnx, tensor))
    clear_data(tensor)
    tensor.raw_data = content
