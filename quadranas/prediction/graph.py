"""An ONNX file as plain data: operators, shapes of their tensors, names of constant tensors.

The network is not executed, and weights are read only if a shape depends on them.
"""

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadranas.errors import MissingExtraError, QuadranasError
from quadranas.files import require_readable
from quadranas.prediction.shapes import (
    SMALL,
    Shape,
    fix_inputs,
    infer_shapes,
    integers,
    known_shapes,
    names_of,
    printable,
    refusal,
)

EXTRA = "onnxruntime"
DATA_FIELDS = (
    *("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data"),
    *("uint64_data", "external_data", "data_location"),
)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator of the file.

    Args:
        op: the operator type; types outside ONNX's own domain are prefixed by their domain.
        inputs, outputs: names of tensors; an omitted optional input is an empty string.
        attributes: the attributes that are integers or lists of integers.
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
        shapes: the known shapes of tensors, including constants.
        constants: names of weights and of tensors computed from weights and shapes alone.
        values: the elements of small integer constants.
        inputs, outputs: names of the network's inputs and outputs.
    """

    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]
    constants: frozenset[str]
    values: Mapping[str, Shape]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def size(self, name: str) -> int:
        """The number of elements of a tensor; 0 if its shape is unknown."""
        return math.prod(self.shapes[name]) if name in self.shapes else 0


def read_graph(path: Path, *, resolution: int | None = None) -> Graph:
    """Read an ONNX file; dynamic batch dimensions become 1.

    Args:
        resolution: height and width of the image, for files in which they are dynamic.

    Raises:
        MissingExtraError: the package `onnx` is not installed.
        QuadranasError: the file is not an ONNX file or damaged, has no operators, lacks its
            external weights, or has an input size that remains dynamic.
    """
    onnx = _import_onnx()
    content = _read(path)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's error class, which onnx does not export
        raise refusal(path, f"not an ONNX file, or damaged ({_first_line(error)})") from error
    if not model.graph.node:
        raise refusal(path, "not an ONNX file, or one without operators")
    try:
        _drop_weights(onnx, model, path)
        fix_inputs(model, path, resolution)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        return _plain(onnx, infer_shapes(onnx, model))
    except QuadranasError:
        raise
    except Exception as error:  # the library has no common base class for malformed graphs
        raise refusal(path, f"its graph is malformed ({_first_line(error)})") from error


def _import_onnx() -> Any:
    try:
        for part in ("external_data_helper", "inliner", "reference", "shape_inference"):
            importlib.import_module(f"onnx.{part}")
        return importlib.import_module("onnx")
    except ImportError as error:
        raise MissingExtraError(
            "reading an ONNX file needs the package 'onnx'",
            f"Install it with: pip install 'quadranas[{EXTRA}]'",
        ) from error


def _read(path: Path) -> bytes:
    require_readable(path, "model")
    try:
        return path.read_bytes()
    except OSError as error:
        raise QuadranasError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # a null character in the path
        raise QuadranasError(f"cannot read {str(path)!r}: {error}") from error


def _first_line(error: Exception) -> str:
    lines = [printable(line) for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _drop_weights(onnx: Any, model: Any, path: Path) -> None:
    """Remove large weights, to make the steps that follow fast; their shapes remain.

    Raises:
        QuadranasError: external weights are missing or truncated.
    """
    tensors = list(model.graph.initializer)
    tensors += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _require_external(onnx, tensor, path)
        if math.prod(tensor.dims) > SMALL:
            for field in DATA_FIELDS:
                tensor.ClearField(field)


def _require_external(onnx: Any, tensor: Any, path: Path) -> None:
    """Check that a tensor's file exists and is long enough; load a small tensor from it."""
    helper = onnx.external_data_helper
    try:
        if math.prod(tensor.dims) <= SMALL:
            helper.load_external_data_for_tensor(tensor, str(path.parent))
            return
        info = helper.ExternalDataInfo(tensor)
        size = (path.parent / info.location).stat().st_size
        missing = size < (info.offset or 0) + (info.length or 0)
    except Exception:  # no such file, a file outside the folder, a link, invalid offsets
        missing = True
    if missing:
        location = next((e.value for e in tensor.external_data if e.key == "location"), "?")
        raise refusal(
            path,
            f"its weights file {printable(location)!r} is missing or truncated",
            "Put that file into the same folder, or export to a single file.",
        )


def _plain(onnx: Any, model: Any) -> Graph:
    """The plain data of a model with inferred shapes; constant operators are removed."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    nodes = []
    for proto in graph.node:
        node = _node(proto)
        if _is_constant(proto, node, constants):
            constants |= set(node.outputs)
        else:
            nodes.append(node)
    return Graph(
        nodes=tuple(nodes),
        shapes=known_shapes(model),
        constants=frozenset(constants - {""}),
        values={name: tuple(v.reshape(-1).tolist()) for name, v in integers(onnx, model).items()},
        inputs=names_of(v.name for v in graph.input if v.name not in constants),
        outputs=names_of(value.name for value in graph.output),
    )


def _is_constant(proto: Any, node: Node, constants: set[str]) -> bool:
    """Whether an operator is independent of the input's values, as shapes are."""
    if any(a.HasField("g") or a.graphs for a in proto.attribute):  # subgraphs see outer tensors
        return False
    reads_constants = all(name in constants for name in node.inputs if name)
    return node.op in ("Shape", "Size") or reads_constants


def _node(proto: Any) -> Node:
    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        if attribute.HasField("i"):
            attributes[attribute.name] = attribute.i
        elif attribute.ints:
            attributes[attribute.name] = tuple(attribute.ints)
    name, domain, op = names_of([proto.name, proto.domain, proto.op_type])
    outputs = names_of(proto.output)
    if not outputs:
        raise ValueError(f"operator {printable(name)!r} has no output")
    return Node(
        name=printable(name or outputs[0]),
        op=printable(op if domain in ("", "ai.onnx") else f"{domain}.{op}"),
        inputs=names_of(proto.input),
        outputs=outputs,
        attributes=attributes,
    )
