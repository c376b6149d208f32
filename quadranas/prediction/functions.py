"""Functions of an ONNX file, written out up to a bounded number of operators."""

from pathlib import Path
from typing import Any, TypeAlias

from quadranas.errors import QuadranasError, printable
from quadranas.prediction.tensors import nested_graphs, refusal

MOST_OPERATORS = 20_000
MOST_BYTES = 2**26
"""Limits on operators and bytes after functions have been written out."""

DEEPEST = 100
"""Limit on functions that call each other in a chain."""

Key: TypeAlias = tuple[str, str, str]
Size: TypeAlias = tuple[int, int]


def write_out_functions(onnx: Any, model: Any, path: Path) -> Any:
    """A model without functions: every call is replaced by the operators of its function.

    A few functions that call each other several times can stand for billions of operators, so
    the result is counted before it is made.

    Raises:
        QuadranasError: it would be too large, or a function calls itself.
    """
    if not model.functions:
        return model
    counter = _Counter(model, path)
    operators, size = counter.size_of(model.graph.node)
    if operators > MOST_OPERATORS or size > MOST_BYTES:
        raise refusal(
            path,
            f"its functions stand for {operators:,} operators ({size:,} bytes); at most "
            f"{MOST_OPERATORS:,} operators ({MOST_BYTES:,} bytes) are read",
            "Export the network without functions.",
        )
    return onnx.inliner.inline_local_functions(model)


class _Counter:
    """Counts operators and bytes, each function once."""

    def __init__(self, model: Any, path: Path) -> None:
        self.functions = {(f.domain, f.name, f.overload): f for f in model.functions}
        self.sizes: dict[Key, Size] = {}
        self.open: list[Key] = []
        self.path = path

    def size_of(self, nodes: Any) -> Size:
        """Number of operators and bytes of a list of nodes once functions are written out."""
        operators = size = 0
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            key = (node.domain, node.op_type, node.overload)
            called = self._size_of_function(key) if key in self.functions else (1, 0)
            operators, size = operators + called[0], size + called[1] + node.ByteSize()
            for graph in nested_graphs(node):
                waiting += graph.node
        return operators, size

    def _size_of_function(self, key: Key) -> Size:
        if key not in self.sizes:
            if key in self.open:
                raise self._refusal(key, "calls itself")
            if len(self.open) >= DEEPEST:
                raise self._refusal(key, f"is called through more than {DEEPEST} others")
            self.open.append(key)
            self.sizes[key] = self.size_of(self.functions[key].node)
            self.open.pop()
        return self.sizes[key]

    def _refusal(self, key: Key, fault: str) -> QuadranasError:
        return refusal(self.path, f"its function {printable(key[1])!r} {fault}")
