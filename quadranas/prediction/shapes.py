"""Shapes of the tensors of an ONNX model with fixed inputs, in one pass over its operators.

onnx's inference is called for one operator at a time: the operator that makes a network
impossible can be named, and the values that shapes are computed from are followed through every
operator set, at a cost that grows with the number of operators only.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quadranas.prediction.checks import fault_of_operands, fault_of_results
from quadranas.prediction.form import ONNX_DOMAINS, fault_of_types
from quadranas.prediction.order import describe, names_read
from quadranas.prediction.tensors import LARGEST, SMALL, Shape, nested_graphs, refusal

MOST_AXES = 64
"""Maximum number of axes of a tensor; those with more are left unknown."""

SHAPE_ARITHMETIC = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "ReduceProd", "Equal", "Where"),
        *("Cast", "Ceil", "Concat", "ConstantOfShape", "Floor", "Gather", "Identity", "Reshape"),
        *("Slice", "Squeeze", "Unsqueeze"),
    }
)
KINDS = (np.int64, np.int32, np.bool_, np.float32)
BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Equal", "Where"})


@dataclass(kw_only=True)
class Tensors:
    """What is known of the tensors of a graph, by name.

    Args:
        types: element type and, as far as known, sizes, as onnx describes them.
        shapes: the completely known shapes.
        values: the elements of small constants, and of small tensors computed from shapes.
        computed: names of the tensors whose values were computed from shapes.
        guessed: names of the tensors whose types follow from ones that are not known.
    """

    types: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)
    guessed: set[str] = field(default_factory=set)

    def known_type(self, name: str) -> Any:
        """The type of a tensor; None if it is not certain."""
        return None if name in self.guessed else self.types.get(name)

    def learn(self, name: str, kind: Any) -> None:
        """Take over a tensor's type, and its shape if that is complete and plausible."""
        tensor = kind.tensor_type
        sizes = [dim.dim_value for dim in tensor.shape.dim]
        if len(sizes) > MOST_AXES:
            return
        self.types[name] = kind
        known = tensor.HasField("shape") and all(size > 0 for size in sizes)
        if known and math.prod(sizes) <= LARGEST:
            self.shapes[name] = tuple(sizes)


def infer_shapes(onnx: Any, model: Any, path: Path, *, check_types: bool = True) -> Tensors:
    """The shapes that follow from a model's inputs; where none follow, those in the file.

    Args:
        check_types: whether inputs of one operator that must have the same type are checked.

    Raises:
        QuadranasError: an operator that no runtime can execute.
    """
    tensors = _stored(onnx, model)
    versions = [one.version for one in model.opset_import if one.domain in ONNX_DOMAINS]
    version = versions[0] if versions else onnx.defs.onnx_opset_version()
    declared = {value.name: value.type for value in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        value = _compute(onnx, model, node, tensors)
        if value is not None:
            _keep_value(onnx, node, value, tensors)
            continue
        known = {name: kind for name in node.input if (kind := tensors.known_type(name))}
        fault = fault_of_types(onnx, node, known, version) if check_types else ""
        _infer(onnx, model, node, tensors, path, fault)
        if any(tensors.known_type(name) is None for name in names_read(node)):
            tensors.guessed.update(node.output)
        for name in filter(None, node.output):
            if name not in tensors.shapes and name in declared:
                tensors.learn(name, declared[name])
    return tensors


def _stored(onnx: Any, model: Any) -> Tensors:
    """The inputs and the stored constants."""
    tensors = Tensors()
    for value in model.graph.input:
        tensors.learn(value.name, value.type)
    for tensor in model.graph.initializer:
        kind = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        tensors.learn(tensor.name, kind)
        value = _small(onnx, tensor)
        if value is not None:
            tensors.values[tensor.name] = value
    for sparse in model.graph.sparse_initializer:
        kind = onnx.helper.make_tensor_type_proto(sparse.values.data_type, sparse.dims)
        tensors.learn(sparse.values.name, kind)
    return tensors


def _small(onnx: Any, tensor: Any) -> Any:
    """The elements of a small numeric tensor, or None."""
    kinds = onnx.TensorProto
    accepted = (kinds.INT64, kinds.INT32, kinds.BOOL, kinds.FLOAT)
    is_small = tensor.data_type in accepted and math.prod(tensor.dims) <= SMALL
    if not is_small or tensor.data_location == kinds.EXTERNAL:
        return None
    try:
        return onnx.numpy_helper.to_array(tensor)
    except ValueError:  # fewer elements than the shape says, as after `to_float`
        if tensor.data_type == kinds.FLOAT:
            return None
        raise


def _keep_value(onnx: Any, node: Any, value: Any, tensors: Tensors) -> None:
    """Take over the elements of an operator's result."""
    name = node.output[0]
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    tensors.learn(name, onnx.helper.make_tensor_type_proto(kind, value.shape))
    tensors.values[name] = value
    if node.op_type != "Constant":
        tensors.computed.add(name)


def _infer(
    onnx: Any, model: Any, node: Any, tensors: Tensors, path: Path, fault: str = ""
) -> None:
    """Learn the types of an operator's outputs, as far as they follow from its inputs.

    Args:
        fault: what is known to be wrong with the operator.
    """
    is_onnx = node.domain in ONNX_DOMAINS
    fault = fault or (fault_of_operands(node, tensors.shapes) if is_onnx else "")
    results: dict[str, Any] = {}
    if not fault:
        try:
            results = _infer_alone(onnx, model, node, tensors)
        except onnx.shape_inference.InferenceError as error:
            whole = all(name in tensors.shapes for name in node.input if name)
            fault = _reason(error) if is_onnx and whole and not nested_graphs(node) else ""
    if not fault and is_onnx:
        fault = fault_of_results(node, tensors.shapes, _whole_sizes(results))
    if fault:
        fault = f"no runtime can execute its operator {describe(node)}: {fault}"
        raise refusal(path, fault, "Correct the network, and export it again.")
    for name, kind in results.items():
        tensors.learn(name, kind)


def _infer_alone(onnx: Any, model: Any, node: Any, tensors: Tensors) -> dict[str, Any]:
    """The types of one operator's outputs.

    Raises:
        InferenceError: the operator is impossible, or too little is known of its inputs.
    """
    graph = onnx.GraphProto(name="operator")
    graph.node.add().CopyFrom(node)
    unknown = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    for name in names_read(node):
        if name in tensors.values:
            array = onnx.numpy_helper.from_array(np.asarray(tensors.values[name]), name)
            graph.initializer.add().CopyFrom(array)
        else:
            value = graph.input.add(name=name)
            value.type.CopyFrom(tensors.types.get(name, unknown))
    for name in filter(None, node.output):
        graph.output.add(name=name)
    # Before IR version 4, weights had to be inputs too.
    alone = onnx.ModelProto(ir_version=max(model.ir_version, 4), graph=graph)
    alone.opset_import.extend(model.opset_import)
    inferred = onnx.shape_inference.infer_shapes(alone, strict_mode=True)
    return {
        value.name: value.type
        for value in inferred.graph.output
        if value.type.WhichOneof("value") is not None
    }


def _whole_sizes(results: Mapping[str, Any]) -> dict[str, list[int]]:
    """The sizes of the results that are completely known, including impossible ones."""
    return {
        name: [dim.dim_value for dim in kind.tensor_type.shape.dim]
        for name, kind in results.items()
        if kind.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in kind.tensor_type.shape.dim)
    }


def _reason(error: Exception) -> str:
    """The explanation of onnx, without its names for the operator and for the kind of error."""
    lines = [re.sub(r"^.*\]\s*", "", line) for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else "its operands do not fit"


def _compute(onnx: Any, model: Any, node: Any, tensors: Tensors) -> Any:
    """The elements of an operator's small result, if it follows from shapes; otherwise None."""
    if node.domain not in ONNX_DOMAINS or len(node.output) != 1:
        return None
    result = None
    inputs: dict[str, Any] = {name: tensors.values.get(name) for name in node.input if name}
    if node.op_type == "Constant":
        result = _constant(onnx, node)
    elif node.op_type == "Shape" and len(node.input) == 1 and node.input[0] in tensors.shapes:
        bounds = {a.name: a.i for a in node.attribute}
        whole = tensors.shapes[node.input[0]]
        result = np.array(whole[bounds.get("start", 0) : bounds.get("end")], np.int64)
    elif node.op_type in SHAPE_ARITHMETIC and all(v is not None for v in inputs.values()):
        floats = any(value.dtype.kind == "f" for value in inputs.values())
        # Products of weights are no shapes; a size times a factor is one.
        if (not floats or tensors.computed & inputs.keys()) and _is_bounded(node, inputs):
            result = _evaluate(onnx, model, node, inputs)
    if result is None or result.dtype not in KINDS or result.size > SMALL:
        return None
    return result


def _constant(onnx: Any, node: Any) -> Any:
    """The elements of a small Constant, or None."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return _small(onnx, attribute.t)
        if attribute.name in ("value_int", "value_ints"):
            whole = attribute.i if attribute.name == "value_int" else attribute.ints
            return np.array(whole, np.int64)
        if attribute.name in ("value_float", "value_floats"):
            number = attribute.f if attribute.name == "value_float" else attribute.floats
            return np.array(number, np.float32)
    return None


def _is_bounded(node: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether the result cannot be much larger than the inputs."""
    try:
        if node.op_type == "ConstantOfShape":
            return all(_volume(value) <= SMALL for value in inputs.values())
        if node.op_type in BROADCASTING:
            shapes = [value.shape for value in inputs.values()]
            return bool(math.prod(np.broadcast_shapes(*shapes)) <= SMALL)
    except ValueError:  # shapes that do not fit
        return False
    return bool(sum(value.size for value in inputs.values()) <= 8 * SMALL)


def _evaluate(onnx: Any, model: Any, node: Any, inputs: dict[str, Any]) -> Any:
    """The result of one operator on small arrays, or None if it cannot be computed."""
    declared = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
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
