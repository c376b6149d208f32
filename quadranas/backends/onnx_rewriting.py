"""Rewriting ONNX models: join products and biases, merge equal constants, shorten names."""

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import numpy as np


def join_bias(model: Any, chosen: Callable[[Any], bool]) -> None:
    """Replace products with a matrix, and the biases added to them, by a Gemm on a list of pixels.

    ONNX Runtime 1.31 has an 8-bit Gemm with a bias. A MatMul would round the sums, add the bias
    in float, and round again.

    Args:
        chosen: selects MatMul nodes.
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
    """A model's shapes and uses for `join_bias`, and the additions that became part of a Gemm."""

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
        """Whether a node multiplies by a constant matrix, with all sizes but the batch known."""
        shape = self.shapes.get(node.output[0], [0, 0])
        return len(self.constants.get(node.input[1], [])) == 2 and all(shape[1:])

    def gemm(self, node: Any) -> list[Any]:
        """The nodes that replace a product and the addition of its bias."""
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
        """The bias added to a product without other uses, and the name of the sum."""
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
    """Merge equal constants, such as zero points and the scales of shared inputs."""
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
    """Replace the tensors' names by numbers; long names take a tenth of a small file.

    Args:
        kept: names that are not changed.
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
