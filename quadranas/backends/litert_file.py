"""The operators of a LiteRT file, read with the schema of ai-edge-litert 2.3.0."""

from collections.abc import Iterator


def operators_of(content: bytes) -> Iterator[str]:
    """The operators of a valid file, in order, such as `CONV_2D`."""
    from ai_edge_litert import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    model = schema.Model.GetRootAs(content)
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            code = model.OperatorCodes(operator.OpcodeIndex())
            number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            custom = code.CustomCode()
            yield custom.decode(errors="replace") if custom else names.get(number, str(number))
