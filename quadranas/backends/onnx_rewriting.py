"""Rewriting ONNX models: products joined with their biases, constants kept once, short names."""

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import numpy as np


def join_bias(model: Any, chosen: Callable[[Any], bool]) -> None:
    """Make products with a matrix, and the biases added to them, a Gemm on a list of pixels.

    ONNX Runtime 1.31 has no 8-bit MatMul that adds a bias: it would round the sums, add the bias
    in float, and round again. Such a Gemm it has.

    Args:
        chosen: which of the MatMul nodes.
    """
    joined = _Joined(model)
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.op_type == "MatMul" and joined.suits(node) and chosen(node):
            nodes += joined.gemm(node)
        else:
            nodes.append(node)
    copies = [
        type(node).FromString(node.SerializeToString())
        for node in nodes
        if not joined.absorbed.intersection(node.output) or node.op_type == "Reshape"
    ]
    del model.graph.node[:]
    model.graph.node.extend(copies)


class _Joined:
    """What `join_bias` knows of a model, and the additions that went into a Gemm."""

    def __init__(self, model: Any) -> None:
        from onnx import shape_inference

        self.graph = graph = model.graph
        self.constants = {c.name: list(c.dims) for c in graph.initializer}
        self.shapes = {
            value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
            for value in (*shape_inference.infer_shapes(model).graph.value_info, *graph.output)
        }
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.uses.update(value.name for value in graph.output)
        self.additions = {
            name: node for node in graph.node if node.op_type == "Add" for name in node.input
        }
        self.absorbed: set[str] = set()

    def suits(self, node: Any) -> bool:
        """Whether it multiplies by a constant matrix, and all sizes but the batch are known."""
        shape = self.shapes.get(node.output[0], [0, 0])
        return len(self.constants.get(node.input[1], [])) == 2 and all(shape[1:])

    def gemm(self, node: Any) -> list[Any]:
        """The nodes in its place, which also write what the addition wrote."""
        from onnx import helper

        product = node.output[0]
        bias, result = self._bias(product)
        layer, _, suffix = node.name.partition("/MatMul")
        name = f"{layer}/Gemm{suffix}"
        rows, sums = f"{product}.rows", f"{product}.sums"
        flat = self._sizes(f"{product}.flat", [-1, self.constants[node.input[1]][0]])
        full = self._sizes(f"{product}.full", [-1, *self.shapes[product][1:]])
        return [
            helper.make_node("Reshape", [node.input[0], flat], [rows], f"{layer}/Rows{suffix}"),
            helper.make_node("Gemm", [rows, node.input[1], *bias], [sums], name),
            helper.make_node("Reshape", [sums, full], [result], f"{layer}/Shape{suffix}"),
        ]

    def _bias(self, product: str) -> tuple[list[str], str]:
        """A bias that is all that happens to a product, and the name of the sum."""
        addition = self.additions.get(product)
        if addition is None or self.uses[product] > 1:
            return [], product
        (other,) = (name for name in addition.input if name != product)
        if self.constants.get(other) != self.shapes[product][-1:]:
            return [], product
        self.absorbed.add(addition.output[0])
        return [other], str(addition.output[0])

    def _sizes(self, name: str, sizes: list[int]) -> str:
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
        return name


def merge_constants(model: Any) -> None:
    """Keep equal constants once: most zero points, and the scales of inputs that layers share."""
    first: dict[bytes, str] = {}
    names: dict[str, str] = {}
    kept = []
    for constant in model.graph.initializer:
        content = type(constant).FromString(constant.SerializeToString())
        content.name = ""
        found = first.setdefault(content.SerializeToString(deterministic=True), constant.name)
        names[constant.name] = found
        if found == constant.name:
            content.name = found
            kept.append(content)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def shorten_names(model: Any, kept: Collection[str]) -> None:
    """Number the tensors: names that a tool derived from others are a tenth of a small file.

    Args:
        kept: names that stay as they are.
    """
    graph = model.graph
    outside = {value.name for value in (*graph.input, *graph.output)}
    names: dict[str, str] = {"": ""}
    for node in graph.node:
        for name in (*node.input, *node.output):
            same = name in outside or name in kept
            names.setdefault(name, name if same else f"q.{len(names)}")
    for node in graph.node:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for constant in graph.initializer:
        constant.name = names.get(constant.name, constant.name)
