"""An ONNX file as plain data: operators, the shapes of their tensors, which tensors are constant.

Nothing in the file is executed, and weights are looked at only where a shape depends on them.
"""

import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadranas.errors import MissingExtraError, QuadranasError

EXTRA = "onnxruntime"
SMALL = 1024
"""Elements up to which a constant is kept: it may be the target of a Reshape."""

LARGEST = 10**15
"""Elements beyond which a shape is taken for nonsense."""

DATA_FIELDS = (
    *("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data"),
    *("uint64_data", "external_data", "data_location"),
)
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator of the file.

    Args:
        op: its type; operators outside ONNX's own set are prefixed by their domain.
        inputs, outputs: names of tensors; an optional one left out is an empty string.
        attributes: those that are integers or lists of them.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The operators that depend on the input, in an order in which they can be executed.

    Args:
        shapes: of all tensors whose shape is known, constants included.
        constants: weights, and what is computed from weights and shapes alone.
        values: the integers in small constants.
        inputs, outputs: of the whole network.
    """

    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]
    constants: frozenset[str]
    values: Mapping[str, Shape]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def size(self, name: str) -> int:
        """Elements of a tensor; 0 if its shape is not known."""
        return math.prod(self.shapes[name]) if name in self.shapes else 0


def read_graph(path: Path, *, resolution: int | None = None) -> Graph:
    """Read an ONNX file for a batch of one, where the file leaves the batch open.

    Args:
        resolution: height and width of the image, where the file leaves them open.

    Raises:
        MissingExtraError: ONNX is not installed.
        QuadranasError: no ONNX file, damaged, without operators or weights, or an open input size.
    """
    onnx = _import_onnx()
    content = _read(path)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own, which onnx does not name
        raise _refusal(path, f"not an ONNX file, or damaged ({_first_line(error)})") from error
    if not model.graph.node:
        raise _refusal(path, "not an ONNX file, or one without operators")
    try:
        _drop_weights(onnx, model, path)
        _fix_inputs(model, path, resolution)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        return _plain(onnx, onnx.shape_inference.infer_shapes(model, data_prop=True))
    except QuadranasError:
        raise
    except Exception as error:  # whatever the library raises for a graph that is not well formed
        raise _refusal(path, f"its graph is not well formed ({_first_line(error)})") from error


def _import_onnx() -> Any:
    try:
        for part in ("onnx.inliner", "onnx.shape_inference", "onnx.external_data_helper"):
            importlib.import_module(part)
        return importlib.import_module("onnx")
    except ImportError as error:
        raise MissingExtraError(
            "reading an ONNX file needs the package 'onnx'",
            f"Install it with: pip install 'quadranas[{EXTRA}]'",
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise QuadranasError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # a path that holds a null character
        raise QuadranasError(f"cannot read {str(path)!r}: {error}") from error


def _refusal(path: Path, fault: str, hint: str = "") -> QuadranasError:
    return QuadranasError(
        f"cannot read {path}: {fault}", hint or "Export the network to ONNX again."
    )


def _first_line(error: Exception) -> str:
    lines = [_printable(line) for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _printable(text: str) -> str:
    """A name as a terminal can show it."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _names(names: Iterable[str | bytes]) -> tuple[str, ...]:
    """Names as text; protobuf hands over as bytes what is not UTF-8.

    Raises:
        UnicodeDecodeError: there is one that is not.
    """
    return tuple(name if isinstance(name, str) else name.decode() for name in names)


def _drop_weights(onnx: Any, model: Any, path: Path) -> None:
    """Forget the weights, so that what follows is quick; their shapes stay.

    Raises:
        QuadranasError: weights are said to be in another file, and are not there.
    """
    tensors = list(model.graph.initializer)
    tensors += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _require_external(onnx, tensor, path)
        if _numel(tensor.dims) > SMALL:
            for field in DATA_FIELDS:
                tensor.ClearField(field)


def _require_external(onnx: Any, tensor: Any, path: Path) -> None:
    """Check that a tensor's file is there and long enough; load it where it is small."""
    helper = onnx.external_data_helper
    try:
        if _numel(tensor.dims) <= SMALL:
            helper.load_external_data_for_tensor(tensor, str(path.parent))
            return
        info = helper.ExternalDataInfo(tensor)
        size = (path.parent / info.location).stat().st_size
        missing = size < (info.offset or 0) + (info.length or 0)
    except Exception:  # no such file, one outside the folder, a link, nonsense for numbers
        missing = True
    if missing:
        location = next((e.value for e in tensor.external_data if e.key == "location"), "?")
        raise _refusal(
            path,
            f"its weights should be in {_printable(location)!r} beside it, where they are "
            "missing or cut off",
            "Put that file into the same folder, or export to a single file.",
        )


def _fix_inputs(model: Any, path: Path, resolution: int | None) -> None:
    """Make the shapes of the inputs definite, and forget the shapes that follow from them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in constants:
            continue
        name = _printable(*_names([value.name]))
        if not value.type.tensor_type.HasField("shape"):
            raise _refusal(path, f"its input {name!r} has no shape", "Export it with one.")
        dims = value.type.tensor_type.shape.dim
        wanted: list[int | None] = [1 if i == 0 else None for i in range(len(dims))]
        if resolution is not None and len(dims) == 4:
            wanted[2:] = [resolution, resolution]
        for axis, (dim, size) in enumerate(zip(dims, wanted, strict=True)):
            if dim.dim_value > 0 and axis > 1 and size not in (None, dim.dim_value):
                raise _refusal(
                    path,
                    f"its input {name!r} has a fixed size, {dim.dim_value} and not {size}",
                    "Leave out --resolution, or export the network for that size.",
                )
            if dim.dim_value <= 0:
                if size is None:
                    raise _refusal(
                        path,
                        f"dimension {axis} of its input {name!r} is not fixed",
                        "Name an image's size with --resolution, or export with a fixed size.",
                    )
                dim.dim_value = size
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _plain(onnx: Any, model: Any) -> Graph:
    """The data in an inferred model; what is constant is taken out of the operators."""
    graph = model.graph
    shapes: dict[str, Shape] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            _keep_shape(shapes, value.name, [dim.dim_value for dim in dims])
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    values: dict[str, Shape] = {}
    for tensor in graph.initializer:
        _keep_shape(shapes, tensor.name, tensor.dims)
        _keep_value(onnx, values, tensor.name, tensor)
    nodes = []
    for proto in graph.node:
        for attribute in proto.attribute:
            if proto.op_type == "Constant" and attribute.name == "value":
                _keep_value(onnx, values, proto.output[0], attribute.t)
        node = _node(proto)
        if _is_constant(proto, node, constants):
            constants |= set(node.outputs)
        else:
            nodes.append(node)
    return Graph(
        nodes=tuple(nodes),
        shapes=shapes,
        constants=frozenset(constants - {""}),
        values=values,
        inputs=_names(v.name for v in graph.input if v.name not in constants),
        outputs=_names(value.name for value in graph.output),
    )


def _is_constant(proto: Any, node: Node, constants: set[str]) -> bool:
    """Whether an operator can be computed before the input is known. Shapes can."""
    if any(a.HasField("g") or a.graphs for a in proto.attribute):
        return False
    known = all(name in constants for name in node.inputs if name)
    return node.op in ("Shape", "Size") or known


def _node(proto: Any) -> Node:
    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        if attribute.HasField("i"):
            attributes[attribute.name] = attribute.i
        elif attribute.ints:
            attributes[attribute.name] = tuple(attribute.ints)
    name, domain, op = _names([proto.name, proto.domain, proto.op_type])
    outputs = _names(proto.output)
    if not outputs:
        raise ValueError(f"operator {_printable(name)!r} has no output")
    return Node(
        name=_printable(name or outputs[0]),
        op=_printable(op if domain in ("", "ai.onnx") else f"{domain}.{op}"),
        inputs=_names(proto.input),
        outputs=outputs,
        attributes=attributes,
    )


def _keep_shape(shapes: dict[str, Shape], name: str, dims: Iterable[int]) -> None:
    shape = tuple(dims)
    if all(dim > 0 for dim in shape) and math.prod(shape) <= LARGEST:
        shapes[name] = shape


def _keep_value(onnx: Any, values: dict[str, Shape], name: str, tensor: Any) -> None:
    if tensor.data_type == onnx.TensorProto.INT64 and 0 < _numel(tensor.dims) <= SMALL:
        array = onnx.numpy_helper.to_array(tensor)
        values[name] = tuple(int(value) for value in array.reshape(-1))


def _numel(dims: Iterable[int]) -> int:
    return math.prod(dims)
