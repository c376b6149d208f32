"""The order of operators, and graphs that have none."""

from pathlib import Path

import pytest

from quadranas.errors import QuadranasError
from quadranas.prediction.fusion import fuse
from quadranas.prediction.graph import read_graph
from tests.onnx_files import Weights, model, write

WEIGHTS: Weights = {"w": (8, 8, 1, 1)}


def test_operators_are_sorted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "net.onnx", "c = Tanh(b)\nb = Conv(a, w)\na = Relu(x)\ny = Abs(c)", WEIGHTS
    )
    assert [node.op for node in read_graph(path).nodes] == ["Relu", "Conv", "Tanh", "Abs"]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("a = Add(x, b)\nb = Relu(a)\ny = Abs(b)", "'a' (Add) depends on its own result"),
        ("a = Relu(a)\ny = Abs(a)", "'a' (Relu) depends on its own result"),
        ("a = Add(x, q)\ny = Abs(a)", "'a' (Add) reads 'q', which no operator makes"),
        ("a = Abs(x)\na = Relu(x)\ny = Abs(a)", "tensor 'a' is made twice"),
        ("x = Abs(w)\ny = Relu(x)", "tensor 'x' is made twice"),
    ],
)
def test_graphs_without_an_order(tmp_path: Path, nodes: str, message: str) -> None:
    with pytest.raises(QuadranasError) as caught:
        read_graph(write(tmp_path / "net.onnx", nodes, WEIGHTS))
    assert message in caught.value.message


def test_an_output_that_nothing_makes(tmp_path: Path) -> None:
    whole = model("y = Relu(x)")
    whole.graph.output[0].name = "z"
    (tmp_path / "net.onnx").write_bytes(whole.SerializeToString())
    with pytest.raises(QuadranasError, match="no operator makes its output 'z'"):
        read_graph(tmp_path / "net.onnx")


def test_what_no_output_depends_on_costs_nothing(tmp_path: Path) -> None:
    """As in a file whose auxiliary output was deleted before deployment."""
    nodes = "a = Conv(x, w)\n{}y = Relu(a)"
    launches, unpriced = fuse(
        read_graph(
            write(
                tmp_path / "net.onnx",
                nodes.format("d = Conv(a, w)\ne = Sigmoid(d)\nf = Sigmoid(a)\n"),
                WEIGHTS,
            )
        )
    )
    assert [[node.op for node in launch.nodes] for launch in launches] == [["Conv", "Relu"]]
    assert unpriced == []
