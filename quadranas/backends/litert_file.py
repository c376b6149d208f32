"""The operators of a valid LiteRT file, read with the schema of ai-edge-litert 2.3.0."""

from collections.abc import Iterator
from typing import Any

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Operators whose second input is a weight."""

PRODUCTS = ("conv2d", "linear")
"""PyTorch's names for them, as in `blocks.stage1_entry.patch_stem.conv/conv2d;3`."""


def operators_of(content: bytes) -> Iterator[str]:
    """The operators, in order, such as `CONV_2D`."""
    model = _model(content)
    for _, operator in _operators(model):
        yield _kind(model, operator)


def products_of(content: bytes) -> dict[str, str]:
    """The products with weights: for the name of each one's output, the path of its layer."""
    model = _model(content)
    found = {}
    for graph, operator in _operators(model):
        if _kind(model, operator) not in WEIGHTED:
            continue
        weight, output = graph.Tensors(operator.Inputs(1)), graph.Tensors(operator.Outputs(0))
        # The output of the network is called otherwise than its layer, unlike the weight.
        layer = _layer(output.Name().decode()) or _layer(weight.Name().decode())
        if layer and model.Buffers(weight.Buffer()).DataLength():
            found[output.Name().decode()] = layer
    return found


def _layer(name: str) -> str:
    """The layer of a product by the name of a tensor, which is several names if it is fused."""
    for part in name.split(";;"):
        path, _, operation = part.partition("/")
        if operation.partition(";")[0] in PRODUCTS:
            return path
    return ""


def _model(content: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.Model.GetRootAs(content)


def _operators(model: Any) -> Iterator[tuple[Any, Any]]:
    """The operators, each with its graph."""
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for number in range(graph.OperatorsLength()):
            yield graph, graph.Operators(number)


def _kind(model: Any, operator: Any) -> str:
    from ai_edge_litert import schema_py_generated as schema

    code = model.OperatorCodes(operator.OpcodeIndex())
    if code.CustomCode():
        return str(code.CustomCode().decode(errors="replace"))
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    return str(names.get(number, number))
