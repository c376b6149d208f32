"""The operators of an ONNX graph in an order in which they can be executed."""

from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from quadranas.errors import printable
from quadranas.prediction.tensors import nested_graphs, refusal


def sort_operators(model: Any, path: Path) -> None:
    """Sort the operators in place; those that are in order already keep it.

    Raises:
        QuadranasError: an operator reads a tensor that nothing makes, or its own result; two
            operators make one tensor; or nothing makes an output.
    """
    graph = model.graph
    stored = {value.name for value in graph.input}
    stored |= {tensor.name for tensor in graph.initializer}
    stored |= {tensor.values.name for tensor in graph.sparse_initializer}
    nodes = list(graph.node)
    makers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in makers or name in stored:
                raise refusal(path, f"its tensor {printable(name)!r} is made twice")
            makers[name] = index
    for value in graph.output:
        if value.name not in makers and value.name not in stored:
            raise refusal(path, f"no operator makes its output {printable(value.name)!r}")
    earlier: dict[int, set[int]] = {}
    for index, node in enumerate(nodes):
        reads = names_read(node)
        missing = next((n for n in reads if n not in makers and n not in stored), None)
        if missing is not None:
            fault = f"reads {printable(missing)!r}, which no operator makes"
            raise refusal(path, f"its operator {describe(node)} {fault}")
        earlier[index] = {makers[name] for name in reads if name in makers}
    if all(max(before, default=-1) < index for index, before in earlier.items()):
        return
    try:
        order = list(TopologicalSorter(earlier).static_order())
    except CycleError as error:
        node = nodes[min(error.args[1])]
        raise refusal(path, f"its operator {describe(node)} depends on its own result") from error
    copies = [_copy(nodes[index]) for index in order]
    del graph.node[:]
    graph.node.extend(copies)


def _copy(node: Any) -> Any:
    """A node that stays when its graph is emptied."""
    copy = type(node)()
    copy.CopyFrom(node)
    return copy


def unread_operators(model: Any) -> set[str]:
    """The first results of the operators that no output depends on, in a sorted graph."""
    needed = {value.name for value in model.graph.output}
    unread = set()
    for node in reversed(model.graph.node):
        if needed.isdisjoint(node.output):
            unread.add(node.output[0])
        else:
            needed.update(names_read(node))
    return unread


def describe(node: Any) -> str:
    """An operator in a message: its name, or else that of its result, and its type."""
    name = node.name or next(iter(node.output), "")
    return f"{printable(name)[:200]!r} ({printable(node.op_type)[:80]})"


def names_read(node: Any) -> list[str]:
    """The tensors that an operator reads, including those that its nested graphs read outside."""
    return [name for name in dict.fromkeys((*node.input, *_outer_names(node))) if name]


def _outer_names(node: Any) -> list[str]:
    names: list[str] = []
    for graph in nested_graphs(node):
        own = {value.name for value in graph.input} | {t.name for t in graph.initializer}
        own |= {tensor.values.name for tensor in graph.sparse_initializer}
        own |= {name for inner in graph.node for name in inner.output}
        reads = [name for inner in graph.node for name in names_read(inner)]
        reads += [value.name for value in graph.output]
        names += [name for name in reads if name not in own]
    return names
