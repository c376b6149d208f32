"""Files that no runtime loads are refused before anything is priced."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from quadranas.errors import QuadranasError
from quadranas.prediction.graph import read_graph
from tests.onnx_files import model

NODES = "n = Conv<kernel_shape=[3,3]>(x, w)\ny = Transpose<perm=[0,2,3,1]>(n)"


def attribute(node: int, name: str, value: Any) -> Callable[[Any], None]:
    """Replace an attribute by one of another type."""

    def change(network: Any) -> None:
        attributes = network.graph.node[node].attribute
        kept = [found for found in attributes if found.name != name]
        del attributes[:]
        attributes.extend([*kept, helper.make_attribute(name, value)])

    return change


def operator_sets(*versions: int) -> Callable[[Any], None]:
    def change(network: Any) -> None:
        del network.opset_import[:]
        network.opset_import.extend(helper.make_opsetid("", version) for version in versions)

    return change


def weights(array: np.ndarray, **fields: Any) -> Callable[[Any], None]:
    def change(network: Any) -> None:
        tensor = numpy_helper.from_array(array, "w")
        for field, value in fields.items():
            setattr(tensor, field, value)
        network.graph.initializer[0].CopyFrom(tensor)

    return change


def shortened(network: Any) -> None:
    tensor = network.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.append(1)


def declared(network: Any) -> None:
    network.graph.input.append(helper.make_tensor_value_info("w", 1, (9, 9, 9, 9)))


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "a number for sizes": (attribute(0, "kernel_shape", 3), "Expected: 'INTS', actual: 'INT'"),
    "sizes for a number": (attribute(0, "group", [1, 1]), "Expected: 'INT', actual: 'INTS'"),
    "a fraction": (attribute(0, "group", 1.0), "Expected: 'INT', actual: 'FLOAT'"),
    "a permutation of one number": (attribute(1, "perm", 1), "Expected: 'INTS', actual: 'INT'"),
    "unknown attribute": (attribute(0, "colour", 1), "Unrecognized attribute: colour"),
    "endless permutation": (
        attribute(1, "perm", list(range(100_000))),
        r"x13x14x15\.\.\. is not one of 4 axes",
    ),
    "types": (weights(np.zeros((4, 8, 3, 3))), "of the types float and double; expected one"),
    "no data": (weights(np.zeros((4, 8, 3, 3), "f"), raw_data=b""), "tensor 'w' is truncated"),
    "one element": (shortened, "tensor 'w' is truncated"),
    "future": (operator_sets(999), "it is of operator set 999, and onnx .* knows 1 to"),
    "future format": (
        lambda network: setattr(network, "ir_version", 999),
        "it has version 999 of the format, and onnx .* knows 1 to",
    ),
    "padding": (attribute(0, "auto_pad", "MOST"), "its auto_pad is 'MOST'; accepted: NOTSET, "),
    "before the first": (operator_sets(0), "it is of operator set 0"),
    "two versions": (operator_sets(18, 7), "it names 2 versions of ONNX's operators"),
    "no version": (operator_sets(), "it names no version of ONNX's operators"),
    "no outputs": (lambda network: network.graph.ClearField("output"), "it has no outputs"),
    "twice": (
        lambda network: network.graph.input.append(network.graph.input[0]),
        "it has several inputs called 'x'",
    ),
    "weights declared otherwise": (declared, "weights 'w' have another shape than its input"),
}


def test_types_that_are_not_certain_are_not_compared(tmp_path: Path) -> None:
    network = model("n = Foo(x)\nm = Identity(n)\na = Add(m, w)\ny = Relu(x)", {"w": [1]})
    network.graph.node[0].domain = "own"
    network.opset_import.append(helper.make_opsetid("own", 1))
    network.opset_import.append(helper.make_opsetid("ai.onnx", 18))
    unshaped = helper.make_tensor_value_info("w", 7, None)
    network.graph.input.append(unshaped)
    path = tmp_path / "net.onnx"
    path.write_bytes(network.SerializeToString())
    assert read_graph(path).shapes["y"] == (1, 8, 16, 16)


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_no_runtime_loads(tmp_path: Path, name: str) -> None:
    network = model(NODES, {"w": (4, 8, 3, 3)})
    path = tmp_path / "net.onnx"
    path.write_bytes(network.SerializeToString())
    assert read_graph(path).shapes["y"] == (1, 14, 14, 4)
    change, fault = CHANGES[name]
    change(network)
    path.write_bytes(network.SerializeToString())
    with pytest.raises(QuadranasError) as caught:
        read_graph(path)
    caught.match(fault)
    assert len(str(caught.value)) < 400
