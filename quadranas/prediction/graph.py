"""An ONNX file as plain data: operators, shapes of their tensors, names of constant tensors.

The network is not executed, and weights are read only if a shape depends on them.
"""

import importlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quadranas.errors import MissingExtraError, QuadranasError, printable
from quadranas.files import require_readable
from quadranas.prediction.form import check_form
from quadranas.prediction.functions import write_out_functions
from quadranas.prediction.inputs import fix_inputs
from quadranas.prediction.order import sort_operators, unread_operators
from quadranas.prediction.quantization import to_float
from quadranas.prediction.shapes import Tensors, infer_shapes
from quadranas.prediction.tensors import (
    Shape,
    drop_weights,
    names_of,
    nested_graphs,
    refusal,
)

EXTRA = "onnxruntime"
PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}
"""Precisions of floating-point files, by ONNX's name of the element type."""

FIRST_IS_DATA = (
    *("Clip", "CumSum", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
    *("OneHot", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "TopK", "Trilu"),
    *("Unsqueeze", "Upsample", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"),
    *("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceLogSum"),
)
NO_DATA = ("ConstantOfShape", "NonMaxSuppression", "Range", "Shape", "Size")
DATA_AT: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(FIRST_IS_DATA, (0,)),
    **dict.fromkeys(NO_DATA, ()),
    **{"RoiAlign": (0,), "ScatterND": (0, 2), "ScatterElements": (0, 2), "Where": (1, 2)},
}
"""Operators with inputs that are no data, and the positions of those that are."""


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
        floats: per stored floating-point constant, its precision. A quantised one counts too.
        sources: per computed constant, the constants that it is computed from.
        weights: names of the stored floating-point constants and of those computed from them.
        unread: the first results of operators that no output depends on.
        quantized: the type that the network is quantised to, such as `int8`; empty for none.
    """

    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]
    constants: frozenset[str]
    values: Mapping[str, Shape]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    floats: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    weights: frozenset[str] = frozenset()
    unread: frozenset[str] = frozenset()
    quantized: str = ""

    @property
    def precision(self) -> str:
        """The precision of most weights; `fp32` for a network without weights."""
        if self.quantized:
            return self.quantized
        sizes: Counter[str] = Counter({"fp32": 0})
        for name, precision in self.floats.items():
            sizes[precision] += self.size(name)
        return sizes.most_common(1)[0][0]

    def count_parameters(self, names: Iterable[str]) -> int:
        """The number of weights in constants, and in what they are computed from, each once."""
        waiting = list(dict.fromkeys(names))
        seen = set(waiting)
        count = 0
        while waiting:
            name = waiting.pop()
            if name in self.floats and self.size(name) > 1:
                count += self.size(name)
            new = [source for source in self.sources.get(name, ()) if source not in seen]
            seen.update(new)
            waiting += new
        return count

    def size(self, name: str) -> int:
        """The number of elements of a tensor; 0 if its shape is unknown."""
        return math.prod(self.shapes[name]) if name in self.shapes else 0


def read_graph(
    path: Path,
    *,
    resolution: int | None = None,
    inputs: Mapping[str, Sequence[int]] | None = None,
) -> Graph:
    """Read an ONNX file; a batch size that the file leaves open becomes 1.

    Args:
        resolution: height and width of the image, for files in which they are dynamic.
        inputs: shapes by the names of inputs, for other dynamic sizes.

    Raises:
        MissingExtraError: the package `onnx` is not installed.
        QuadranasError: the file is not an ONNX file or damaged, has no operators, lacks its
            external weights, describes a network that no runtime can execute, or has an input
            size that remains dynamic.
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
        drop_weights(onnx, model, path)
        model = write_out_functions(onnx, model, path)
        check_form(onnx, model, path)
        quantized = to_float(onnx, model)
        sort_operators(model, path)
        fix_inputs(model, path, resolution, inputs or {})
        # The steps in between of a quantised network keep their types, which no longer fit.
        tensors = infer_shapes(onnx, model, path, check_types=not quantized)
        return _plain(onnx, model, tensors, quantized)
    except QuadranasError:
        raise
    except Exception as error:  # the library has no common base class for malformed graphs
        raise refusal(path, f"its graph is malformed ({_first_line(error)})") from error


def _import_onnx() -> Any:
    try:
        for part in ("checker", "external_data_helper", "inliner", "reference", "shape_inference"):
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


def _plain(onnx: Any, model: Any, tensors: Tensors, quantized: str) -> Graph:
    """The plain data of a model with inferred shapes; constant operators are removed."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    inputs = names_of(v.name for v in graph.input if v.name not in constants)
    stored, nodes = set(constants), []
    sources: dict[str, tuple[str, ...]] = {}
    for proto in graph.node:
        node = _node(proto)
        if _is_constant(proto, node, constants):
            constants |= set(node.outputs)
            sources |= dict.fromkeys(node.outputs, tuple(data_inputs(node)))
            stored |= set() if node.inputs else set(node.outputs)
        else:
            nodes.append(node)
    floats = _precisions(onnx, tensors, stored)
    weights = set(floats)
    for name, found in sources.items():
        if weights.intersection(found):
            weights.add(name)
    integers = {name: value for name, value in tensors.values.items() if value.dtype.kind in "ib"}
    return Graph(
        nodes=tuple(nodes),
        shapes=tensors.shapes,
        constants=frozenset(constants - {""}),
        values={name: tuple(value.reshape(-1).tolist()) for name, value in integers.items()},
        inputs=inputs,
        outputs=names_of(value.name for value in graph.output),
        floats=floats,
        sources=sources,
        weights=frozenset(weights),
        unread=frozenset(names_of(unread_operators(model))),
        quantized=quantized,
    )


def _precisions(onnx: Any, tensors: Tensors, names: Iterable[str]) -> dict[str, str]:
    """The precisions of those tensors that are in floating point."""
    kinds = {}
    for name in names:
        if name in tensors.types:
            kind = onnx.TensorProto.DataType.Name(tensors.types[name].tensor_type.elem_type)
            kinds[name] = kind.lower()
    return {n: PRECISIONS.get(k, k) for n, k in kinds.items() if "float" in k or k == "double"}


def data_inputs(node: Node) -> tuple[str, ...]:
    """The inputs of an operator that can be data or weights, without sizes, axes and limits."""
    kept = DATA_AT.get(node.op)
    if kept is None:
        return tuple(name for name in node.inputs if name)
    return tuple(node.inputs[i] for i in kept if i < len(node.inputs) and node.inputs[i])


def _is_constant(proto: Any, node: Node, constants: set[str]) -> bool:
    """Whether an operator is independent of the input's values, as shapes are."""
    if nested_graphs(proto):  # they see outer tensors
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
