"""Quantised ONNX files as the network in floating point that they approximate.

Quantisation appears in three forms: pairs of QuantizeLinear and DequantizeLinear around ordinary
operators (QDQ), operators on integers with scales (QLinearConv ...), and scales computed from the
data (DynamicQuantizeLinear, ConvInteger ...). All are replaced by the operator in floating point,
which shape inference and fusion know; the steps in between become identities, which are free.
"""

from typing import Any

SAME = {"QuantizeLinear": (0,), "DequantizeLinear": (0,), "DynamicQuantizeLinear": (0,)}
"""Operators that only change the representation of their first input."""

OPERATORS: dict[str, tuple[str, tuple[int, ...]]] = {
    "QLinearConv": ("Conv", (0, 3, 8)),
    "QLinearMatMul": ("MatMul", (0, 3)),
    "ConvInteger": ("Conv", (0, 1)),
    "MatMulInteger": ("MatMul", (0, 1)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "QGemm": ("Gemm", (0, 3, 6)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearSigmoid": ("Sigmoid", (0,)),
    "QLinearLeakyRelu": ("LeakyRelu", (0,)),
    "QLinearSoftmax": ("Softmax", (0,)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
}
"""Per quantised operator, the one in floating point and the positions of the inputs it keeps."""

INTEGER = frozenset({"ConvInteger", "MatMulInteger"})
"""Operators whose result is cast to floating point, and scaled, by the next operators."""

DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})


def to_float(onnx: Any, model: Any) -> str:
    """Replace quantised operators in place by operators in floating point.

    Returns:
        The type that the network is quantised to, such as `int8` or, if it computes in floating
        point, `int4 (weights only)`; empty if it is not quantised.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
            stored = [attribute.t for attribute in node.attribute if attribute.HasField("t")]
            tensors |= zip(node.output[:1], stored, strict=False)
    found: set[str] = set()
    integers: set[str] = set()
    computes = False
    for node in list(model.graph.node):
        if node.domain not in DOMAINS:
            continue
        if node.op_type == "Cast" and integers.intersection(node.input):
            node.op_type = "Identity"
            del node.attribute[:]
        elif _is_quantized(node):
            if node.op_type in INTEGER:
                integers.update(node.output)
            found |= _stored_types(onnx, node, tensors)
            computes = computes or node.op_type != "DequantizeLinear"
            _replace(onnx, model, node, tensors)
    kind = "int8" if "int8" in found else min(found, default="")
    return kind if computes or not kind else f"{kind} (weights only)"


def _is_quantized(node: Any) -> bool:
    if any(attribute.name == "channels_last" and attribute.i for attribute in node.attribute):
        return False  # no operator of ONNX pools over other axes than the last
    return node.op_type in SAME or node.op_type in OPERATORS or _is_join(node)


def _is_join(node: Any) -> bool:
    return bool(node.op_type == "QLinearConcat")


def _stored_types(onnx: Any, node: Any, tensors: dict[str, Any]) -> set[str]:
    """The integer types of a quantised operator: of its zero point, or of its weights."""
    if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") and len(node.input) < 3:
        return {"int8"}
    kinds = {tensors[name].data_type for name in node.input if name in tensors}
    names = {onnx.TensorProto.DataType.Name(kind).lower() for kind in kinds}
    names = {name.removeprefix("u") for name in names} - {"int32", "int64"}
    return {name for name in names if name.startswith(("int", "float8", "float4"))}


def _replace(onnx: Any, model: Any, node: Any, tensors: dict[str, Any]) -> None:
    """Rewrite one operator; the weights that it keeps become tensors of floating point."""
    if _is_join(node):  # scale and zero point of the output, then triples of tensor, scale, point
        op, kept = "Concat", tuple(range(2, len(node.input), 3))
    elif node.op_type in SAME:
        op, kept = "Identity", SAME[node.op_type]
    else:
        op, kept = OPERATORS[node.op_type]
    inputs = [node.input[i] for i in kept if i < len(node.input)]
    scales = list(node.output[1:])  # of DynamicQuantizeLinear
    for name in filter(None, scales):
        constant = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [1.0])
        model.graph.initializer.append(constant)
    del node.input[:], node.output[1:]
    node.input.extend(inputs)
    for name in inputs:
        if name in tensors:
            for field in ("raw_data", "int32_data"):
                tensors[name].ClearField(field)
            tensors[name].data_type = onnx.TensorProto.FLOAT
    if op == "Identity":
        del node.attribute[:]
    node.op_type, node.domain = op, ""
