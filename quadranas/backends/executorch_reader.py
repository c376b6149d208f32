"""The operators of an ExecuTorch program, read from its file with ExecuTorch 1.4.1's parsers."""

import json
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

XNNPACK = "XnnpackBackend"


def operators_of(content: bytes) -> Iterator[str]:
    """The operators of a program, in the order of its instructions.

    XNNPACK's operators are listed one by one, another delegate only by its name.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.exir.schema import DelegateCall, KernelCall

    program = deserialize_pte_binary(content).program
    (plan,) = program.execution_plan
    for chain in plan.chains:
        for instruction in chain.instructions:
            call = instruction.instr_args
            if isinstance(call, KernelCall):
                operator = plan.operators[call.op_index]
                yield f"{operator.name}.{operator.overload}".rstrip(".")
            elif isinstance(call, DelegateCall):
                delegate = plan.delegates[call.delegate_index]
                payload = program.backend_delegate_data[delegate.processed.index].data
                yield from _nodes_of(payload) if delegate.id == XNNPACK else [delegate.id]


def _nodes_of(payload: bytes) -> Iterator[str]:
    """The kinds of nodes of an XNNPACK graph, such as `XNNConv2d`."""
    from executorch.backends.xnnpack import serialization
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    end = header.flatbuffer_offset + header.flatbuffer_size
    with tempfile.TemporaryDirectory() as folder:
        graph, schema = Path(folder) / "graph.bin", Path(folder) / "schema.fbs"
        graph.write_bytes(payload[header.flatbuffer_offset : end])
        schema.write_bytes(resources.files(serialization).joinpath("schema.fbs").read_bytes())
        _flatc_decompile(folder, str(schema), str(graph), ["--raw-binary"])
        nodes = json.loads(graph.with_suffix(".json").read_text(encoding="utf-8"))["xnodes"]
    for node in nodes:
        yield node["xnode_union_type"]
