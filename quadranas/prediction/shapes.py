"""Shape inference for ONNX models with fixed input shapes."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from quadranas.errors import QuadranasError

Shape = tuple[int, ...]
SMALL = 1024
"""Maximum number of elements of a constant that is kept, such as the target of a Reshape."""

LARGEST = 10**15
"""Maximum number of elements of a plausible tensor; larger shapes are ignored."""

SHAPE_ARITHMETIC = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "ReduceProd", "Equal", "Where"),
        *("Cast", "Concat", "ConstantOfShape", "Gather", "Identity", "Reshape", "Slice"),
        *("Squeeze", "Unsqueeze"),
    }
)


def refusal(path: Path, fault: str, hint: str = "") -> QuadranasError:
    """The error for a file that cannot be read."""
    return QuadranasError(
        f"cannot read {path}: {fault}", hint or "Export the network to ONNX again."
    )


def printable(text: str) -> str:
    """A name without characters that a terminal cannot print."""
    return text if text.isprintable() else ascii(text)[1:-1]


def names_of(names: Iterable[str | bytes]) -> tuple[str, ...]:
    """Names as text. Protobuf returns names that are not UTF-8 as bytes.

    Raises:
        UnicodeDecodeError: a name is not UTF-8.
    """
    return tuple(name if isinstance(name, str) else name.decode() for name in names)


def fix_inputs(model: Any, path: Path, resolution: int | None) -> None:
    """Fix the shapes of the inputs in place, and clear the shapes inferred from them.

    Raises:
        QuadranasError: an input has no shape, a dimension remains dynamic, or its fixed size is
            not `resolution`.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in constants:
            continue
        name = printable(*names_of([value.name]))
        if not value.type.tensor_type.HasField("shape"):
            raise refusal(path, f"its input {name!r} has no shape", "Export it with one.")
        dims = value.type.tensor_type.shape.dim
        sizes: list[int | None] = [1 if i == 0 else None for i in range(len(dims))]
        if resolution is not None and len(dims) == 4:
            sizes[2:] = [resolution, resolution]
        for axis, (dim, size) in enumerate(zip(dims, sizes, strict=True)):
            if dim.dim_value > 0 and axis > 1 and size not in (None, dim.dim_value):
                raise refusal(
                    path,
                    f"its input {name!r} has the fixed size {dim.dim_value}, not {size}",
                    "Omit --resolution, or export the network for that size.",
                )
            if dim.dim_value <= 0:
                if size is None:
                    raise refusal(
                        path,
                        f"dimension {axis} of its input {name!r} is dynamic",
                        "Give the image size with --resolution, or export with a fixed size.",
                    )
                dim.dim_value = size
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def infer_shapes(onnx: Any, model: Any) -> Any:
    """A model with all shapes that can be inferred from its inputs.

    onnx 1.23 propagates computed shapes through Reshape only from operator set 14 on, and through
    few operators. The others are computed here, round by round, and replaced by constants.
    """
    while True:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        shapes = known_shapes(inferred)
        if all(name in shapes for node in model.graph.node for name in node.output[:1]):
            return inferred
        if not _compute_shapes(onnx, model, shapes):
            return inferred


def known_shapes(model: Any) -> dict[str, Shape]:
    """The completely known shapes, by the names of the tensors."""
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    tensors = ((value.name, value.type.tensor_type) for value in values)
    shapes = {
        name: tuple(dim.dim_value for dim in tensor.shape.dim)
        for name, tensor in tensors
        if tensor.HasField("shape")
    }
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return {
        name: shape
        for name, shape in shapes.items()
        if all(size > 0 for size in shape) and math.prod(shape) <= LARGEST
    }


def integers(onnx: Any, model: Any) -> dict[str, Any]:
    """The small integer and Boolean constants as arrays, by name."""
    tensors = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
            tensors += [(node.output[0], a.t) for a in node.attribute if a.name == "value"]
    return {
        name: onnx.numpy_helper.to_array(tensor)
        for name, tensor in tensors
        if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
        and math.prod(tensor.dims) <= SMALL
    }


def _compute_shapes(onnx: Any, model: Any, shapes: dict[str, Shape]) -> bool:
    """Replace operators that compute with known shapes by constants; returns whether any was."""
    values = integers(onnx, model)
    replaced = False
    for node in model.graph.node:
        result = None
        if node.domain not in ("", "ai.onnx") or len(node.output) != 1:
            continue
        if node.op_type == "Shape" and node.input and node.input[0] in shapes:
            bounds = {a.name: a.i for a in node.attribute}
            whole = shapes[node.input[0]]
            result = np.array(whole[bounds.get("start", 0) : bounds.get("end")], np.int64)
        elif node.op_type in SHAPE_ARITHMETIC and all(name in values for name in node.input):
            result = _evaluate(onnx, model, node, {name: values[name] for name in node.input})
        if result is not None and result.dtype in (np.int64, np.bool_) and result.size <= SMALL:
            values[node.output[0]] = result
            tensor = onnx.numpy_helper.from_array(result)
            constant = onnx.helper.make_node("Constant", [], [node.output[0]], value=tensor)
            node.CopyFrom(constant)
            replaced = True
    return replaced


def _evaluate(onnx: Any, model: Any, node: Any, inputs: dict[str, Any]) -> Any:
    """The result of one operator on small integers, or None if it cannot be computed."""
    if node.op_type == "ConstantOfShape" and max(map(_volume, inputs.values())) > SMALL:
        return None
    kinds = {np.dtype(np.int64): onnx.TensorProto.INT64, np.dtype(bool): onnx.TensorProto.BOOL}
    declared = [
        onnx.helper.make_tensor_value_info(name, kinds[value.dtype], value.shape)
        for name, value in inputs.items()
    ]
    output = onnx.helper.make_empty_tensor_value_info(node.output[0])
    graph = onnx.helper.make_graph([node], "shape", declared, [output])
    small = onnx.helper.make_model(graph, opset_imports=list(model.opset_import))
    try:
        with np.errstate(all="raise"):
            (result,) = onnx.reference.ReferenceEvaluator(small).run(None, inputs)
    except Exception:  # invalid operands, for which the evaluator has no common error class
        return None
    return result if isinstance(result, np.ndarray) else None


def _volume(shape: Any) -> int:
    return math.prod(abs(int(size)) for size in shape.reshape(-1))
