"""ONNX files as tests write them: a line per operator, in ONNX's own notation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

Weights: TypeAlias = Mapping[str, tuple[int, ...] | list[int] | float]
"""By name: the shape of an array of zeros, a list of integers, or a number."""


def model(
    nodes: str, weights: Weights | None = None, image: Any = (1, 8, 16, 16), opset: int = 18
) -> Any:
    """A model from `x`, of the shape of an image, to what the last line computes."""
    parsed = [onnx.parser.parse_node(line) for line in nodes.strip().splitlines()]
    graph = helper.make_graph(
        parsed,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info(parsed[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(_array(value), name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def write(
    path: Path, nodes: str, weights: Weights | None = None, image: Any = (1, 8, 16, 16)
) -> Path:
    """The same as a file."""
    path.write_bytes(model(nodes, weights, image).SerializeToString())
    return path


def _array(value: tuple[int, ...] | list[int] | float) -> Any:
    if isinstance(value, tuple):
        return np.zeros(value, np.float32)
    return np.array(value, np.int64 if isinstance(value, list) else np.float32)
