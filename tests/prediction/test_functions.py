"""Functions that stand for more operators than can be read."""

from pathlib import Path

import pytest
from onnx import helper

from quadranas.errors import QuadranasError
from quadranas.prediction.graph import read_graph
from tests.onnx_files import model


def write_calls(path: Path, bodies: list[list[str]]) -> Path:
    """A file that calls the last of some functions; each is a chain of operators, by name."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    whole = model("y = Relu(x)")
    whole.graph.node[0].op_type, whole.graph.node[0].domain = f"f{len(bodies) - 1}", "f"
    whole.opset_import.append(opsets[1])
    for index, body in enumerate(bodies):
        names = ["a", *(f"t{i}" for i in range(len(body) - 1)), "b"]
        nodes = [
            helper.make_node(op, [names[i]], [names[i + 1]], domain="f" if op[0] == "f" else "")
            for i, op in enumerate(body)
        ]
        whole.functions.append(helper.make_function("f", f"f{index}", ["a"], ["b"], nodes, opsets))
    path.write_bytes(whole.SerializeToString())
    return path


def test_nested_functions_are_written_out(tmp_path: Path) -> None:
    bodies = [["Relu"], ["f0"] * 3, ["f1", "Abs", "f1"]]
    graph = read_graph(write_calls(tmp_path / "net.onnx", bodies))
    assert [node.op for node in graph.nodes] == [*["Relu"] * 3, "Abs", *["Relu"] * 3]


@pytest.mark.parametrize(("depth", "calls"), [(9, 10), (30, 2)])
def test_an_explosion_is_refused_before_it_happens(tmp_path: Path, depth: int, calls: int) -> None:
    bodies = [["Relu"], *([f"f{i}"] * calls for i in range(depth))]
    with pytest.raises(QuadranasError, match=f"stand for {calls**depth:,} operators"):
        read_graph(write_calls(tmp_path / "net.onnx", bodies))


@pytest.mark.parametrize("bodies", [[["f0"]], [["f1"], ["f0"]]])
def test_a_function_that_calls_itself(tmp_path: Path, bodies: list[list[str]]) -> None:
    with pytest.raises(QuadranasError, match=r"its function 'f\d' calls itself"):
        read_graph(write_calls(tmp_path / "net.onnx", bodies))


def test_a_long_chain_of_functions(tmp_path: Path) -> None:
    bodies = [["Relu"], *([f"f{i}"] for i in range(300))]
    with pytest.raises(QuadranasError, match="is called through more than 100 others"):
        read_graph(write_calls(tmp_path / "net.onnx", bodies))
