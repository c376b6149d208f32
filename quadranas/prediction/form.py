"""ONNX files that no runtime loads, whatever their shapes: versions, attributes and types."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quadranas.errors import printable
from quadranas.prediction.order import describe
from quadranas.prediction.tensors import nested_graphs, refusal

ONNX_DOMAINS = ("", "ai.onnx")
CORRECT = "Correct the network, and export it again."


def check_form(onnx: Any, model: Any, path: Path) -> None:
    """Check versions, inputs and outputs, and the attributes of the operators that onnx knows.

    Raises:
        QuadranasError: no runtime can load the file; names the fault.
    """
    if model.ir_version > onnx.IR_VERSION:
        raise refusal(
            path,
            f"it has version {model.ir_version} of the format, and onnx {onnx.__version__} knows "
            f"1 to {onnx.IR_VERSION}",
            "Upgrade the package onnx, or export with an older version.",
        )
    version = _operator_set(onnx, model, path)
    graph = model.graph
    if not graph.output:
        raise refusal(path, "it has no outputs", CORRECT)
    doubled = _doubled(value.name for value in graph.input)
    if doubled is not None:
        raise refusal(path, f"it has several inputs called {printable(doubled)!r}", CORRECT)
    stored = {tensor.name: tensor.dims for tensor in graph.initializer}
    for value in graph.input:
        declared = value.type.tensor_type
        shape = declared.shape.dim
        sizes = [size.dim_value for size in shape if size.dim_value > 0]
        is_whole = declared.HasField("shape") and len(sizes) == len(shape)
        if value.name in stored and is_whole and sizes != [*stored[value.name]]:
            fault = f"its weights {printable(value.name)!r} have another shape than its input"
            raise refusal(path, f"{fault} of that name", CORRECT)
    context = onnx.checker.DEFAULT_CONTEXT.__class__()
    context.ir_version, context.opset_imports = model.ir_version, {"": version}
    for node in graph.node:
        _check_attributes(onnx, node, context, path)


def _operator_set(onnx: Any, model: Any, path: Path) -> int:
    """The version of ONNX's own operators that a model is written in."""
    newest = onnx.defs.onnx_opset_version()
    versions = [*{one.version for one in model.opset_import if one.domain in ONNX_DOMAINS}]
    uses = any(node.domain in ONNX_DOMAINS for node in model.graph.node)
    # A file without a version is of the first operator set, by the specification.
    if len(versions) > 1 or (uses and not versions):
        found = f"{len(versions)} versions" if versions else "no version"
        raise refusal(path, f"it names {found} of ONNX's operators; expected one")
    version = int(versions[0]) if versions else int(newest)
    if not 1 <= version <= newest:
        raise refusal(
            path,
            f"it is of operator set {version}, and onnx {onnx.__version__} knows 1 to {newest}",
            "Upgrade the package onnx, or export for an older operator set.",
        )
    return version


def _doubled(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _check_attributes(onnx: Any, node: Any, context: Any, path: Path) -> None:
    """Check the attributes of an operator, if it has no graphs, which refer to names outside.

    Raises:
        QuadranasError: they are unknown, missing, or of the wrong type.
    """
    version = context.opset_imports[""]
    if node.domain not in ONNX_DOMAINS or nested_graphs(node) or node.op_type == "Constant":
        return
    known = onnx.defs.has(node.op_type, version, "")
    if not known or onnx.defs.get_schema(node.op_type, version, "").deprecated:
        return
    plain = type(node)()
    plain.CopyFrom(node)
    plain.domain = ""
    try:
        onnx.checker.check_node(plain, context)
    except onnx.checker.ValidationError as error:
        lines = [printable(line) for line in str(error).splitlines() if line.strip()]
        fault = f"no runtime can execute its operator {describe(node)}: {lines[0][:200]}"
        raise refusal(path, fault, CORRECT) from error


def fault_of_types(onnx: Any, node: Any, types: Mapping[str, Any], version: int) -> str:
    """Why the types of an operator's inputs do not fit each other; empty if they do.

    Args:
        types: the types of the tensors that are known, by name.
        version: the version of ONNX's own operators.
    """
    if node.domain not in ONNX_DOMAINS or not onnx.defs.has(node.op_type, version, ""):
        return ""
    formal = onnx.defs.get_schema(node.op_type, version, "").inputs
    kinds: dict[str, int] = {}
    for number, name in enumerate(node.input):
        if name not in types or not formal:
            continue
        parameter = formal[min(number, len(formal) - 1)]
        found = types[name].tensor_type.elem_type
        if not found or not parameter.is_homogeneous or parameter.type_str.startswith("tensor("):
            continue
        first = kinds.setdefault(parameter.type_str, found)
        if first != found:
            names = (onnx.TensorProto.DataType.Name(kind).lower() for kind in (first, found))
            return f"its inputs are of the types {' and '.join(names)}; expected one type"
    return ""
