"""Reading ONNX files: shapes, constants, and what is said about files that cannot be read."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from quadranas.commands.predict import PredictResult, predict
from quadranas.errors import MissingExtraError, QuadranasError
from quadranas.prediction.graph import read_graph
from tests.onnx_files import model, write

NODES = "a = Conv(x, w)\nb = Relu(a)\nc = Transpose(v)\nd = Flatten(b)\ny = Gemm(d, c)"
WEIGHTS = {"w": (8, 8, 1, 1), "v": (10, 2048)}


def test_shapes_and_constants(tmp_path: Path) -> None:
    graph = read_graph(write(tmp_path / "net.onnx", NODES, WEIGHTS))
    assert [node.op for node in graph.nodes] == ["Conv", "Relu", "Flatten", "Gemm"]
    assert graph.constants == {"w", "v", "c"}
    assert graph.shapes["y"] == (1, 10)
    assert graph.size("b") == 2048
    assert graph.size("nothing") == 0
    assert (graph.inputs, graph.outputs) == (("x",), ("y",))


def test_an_open_batch_is_one_and_a_fixed_one_is_kept(tmp_path: Path) -> None:
    shapes = "s = Shape(x)\nf = Gather(s, first)\nt = Concat<axis=0>(f, rest)\ny = Reshape(x, t)"
    weights: Any = {"first": [0], "rest": [-1]}
    for batch, expected in (("batch", 1), (None, 1), (4, 4)):
        path = write(tmp_path / "net.onnx", shapes, weights, image=(batch, 8, 16, 16))
        assert read_graph(path).shapes["y"] == (expected, 2048)


@pytest.mark.parametrize("opset", [11, 12, 13, 14, 17])
def test_shapes_are_computed_for_old_operator_sets_too(tmp_path: Path, opset: int) -> None:
    """What `x.view(x.size(0), -1, x.size(2) // 2)` and `x.flatten(1)` have long become."""
    axes = "<axes=[0]>({})" if opset < 13 else "({}, zeros)"
    nodes = (
        f"s = Shape(x)\nf = Gather(s, zero)\nu = Unsqueeze{axes.format('f')}\n"
        f"h = Gather(s, last)\ni = Div(h, last)\nj = Unsqueeze{axes.format('i')}\n"
        "t = Concat<axis=0>(u, rest, j)\na = Reshape(x, t)\nk = Shape(a)\n"
        "l = Slice(k, zeros, ones)\nm = Concat<axis=0>(l, rest)\ny = Reshape(a, m)"
    )
    weights: Any = {"zeros": [0], "ones": [1], "rest": [-1]}
    whole = model(nodes, weights, ("batch", 8, 16, 16), opset)
    for name, value in (("zero", 0), ("last", 2)):
        whole.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    path = tmp_path / "net.onnx"
    path.write_bytes(whole.SerializeToString())
    graph = read_graph(path)
    assert [node.op for node in graph.nodes] == ["Reshape", "Reshape"]
    assert (graph.shapes["a"], graph.shapes["y"]) == ((1, 256, 8), (1, 2048))


def test_a_division_by_zero_in_a_shape_leaves_it_unknown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes = "s = Shape(x)\nt = Div(s, zero)\ny = Reshape(x, t)"
    graph = read_graph(write(tmp_path / "net.onnx", nodes, {"zero": [0]}))
    assert "y" not in graph.shapes
    assert capfd.readouterr().err == ""


def test_an_open_resolution_has_to_be_named(tmp_path: Path) -> None:
    nodes = "a = Conv(x, w)\ny = GlobalAveragePool(a)"
    path = write(tmp_path / "net.onnx", nodes, WEIGHTS, image=("batch", 8, "height", "width"))
    with pytest.raises(QuadranasError, match="dimension 2 of its input 'x' is dynamic") as caught:
        read_graph(path)
    assert "--resolution" in caught.value.hint
    assert read_graph(path, resolution=32).shapes["a"] == (1, 8, 32, 32)
    fixed = write(tmp_path / "fixed.onnx", nodes, WEIGHTS)
    assert read_graph(fixed, resolution=16).shapes["a"] == (1, 8, 16, 16)
    with pytest.raises(QuadranasError, match="its input 'x' has the fixed size 16, not 32"):
        read_graph(fixed, resolution=32)
    channels = write(tmp_path / "channels.onnx", nodes, WEIGHTS, image=(1, "c", 16, 16))
    with pytest.raises(QuadranasError, match="dimension 1 of its input 'x' is dynamic"):
        read_graph(channels, resolution=16)


def test_functions_are_written_out(tmp_path: Path) -> None:
    function = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["c"],
        [onnx.parser.parse_node(f"{o} = Relu({i})") for i, o in (("a", "b"), ("b", "c"))],
        [helper.make_opsetid("", 18)],
    )
    whole = model("y = Twice(x)")
    whole.graph.node[0].domain = "local"
    whole.functions.append(function)
    whole.opset_import.append(helper.make_opsetid("local", 1))
    path = tmp_path / "net.onnx"
    path.write_bytes(whole.SerializeToString())
    assert [node.op for node in read_graph(path).nodes] == ["Relu", "Relu"]


def test_a_branch_is_not_computed_beforehand(tmp_path: Path) -> None:
    whole = model("y = Relu(x)", {"c": 1.0})
    branch = helper.make_graph(
        [onnx.parser.parse_node("z = Relu(x)")],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["c"], ["z"], "choice", then_branch=branch, else_branch=branch)
    whole.graph.node.append(node)
    path = tmp_path / "net.onnx"
    path.write_bytes(whole.SerializeToString())
    assert [node.op for node in read_graph(path).nodes] == ["Relu", "If"]


def test_weights_in_another_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    whole = model(NODES, WEIGHTS)
    onnx.save(whole, path, save_as_external_data=True, location="w.bin", size_threshold=16)
    assert read_graph(path).shapes["y"] == (1, 10)
    content = (tmp_path / "w.bin").read_bytes()
    for action in (
        lambda: (tmp_path / "w.bin").write_bytes(content[:-1]),
        lambda: (tmp_path / "w.bin").unlink(),
    ):
        action()
        with pytest.raises(
            QuadranasError, match=r"its weights file 'w.bin' is missing or truncated"
        ):
            read_graph(path)


def _write_without_shape(path: Path) -> None:
    whole = model("y = Relu(x)")
    whole.graph.input[0].type.tensor_type.ClearField("shape")
    path.write_bytes(whole.SerializeToString())


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_text("a text"), "not an ONNX file"),
        (lambda path: path.write_bytes(b""), "not an ONNX file, or one without operators"),
        (
            lambda path: path.write_bytes(model(NODES, WEIGHTS).SerializeToString()[:-100]),
            "not an ONNX file, or damaged",
        ),
        (
            lambda path: path.write_bytes(
                helper.make_model(onnx.GraphProto()).SerializeToString()
            ),
            "not an ONNX file, or one without operators",
        ),
        (_write_without_shape, "its input 'x' has no shape"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, prepare: Any, message: str) -> None:
    prepare(tmp_path / "net.onnx")
    with pytest.raises(QuadranasError, match=message) as caught:
        read_graph(tmp_path / "net.onnx")
    assert "net.onnx" in caught.value.message


def test_a_path_with_a_null_character() -> None:
    with pytest.raises(QuadranasError, match="cannot read"):
        read_graph(Path("net\0.onnx"))


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx.inliner", None)
    with pytest.raises(MissingExtraError, match="needs the package 'onnx'") as caught:
        read_graph(tmp_path / "net.onnx")
    assert "quadranas[onnxruntime]" in caught.value.hint


@cache
def whole_file() -> bytes:
    nodes = (
        "a = Conv<pads=[1,1,1,1], group=2>(x, w, b)\nb1 = BatchNormalization(a, b, b, b, b)\n"
        "c = Clip(b1, low)\nd = MaxPool<kernel_shape=[2,2]>(c)\ne = ReduceSum(d, axes)\n"
        "f = Reshape(e, flat)\ng = Gemm<transB=1>(f, v)\nh, h2 = Split<axis=1>(g)\n"
        "i = Transpose<perm=[1,0]>(h)\nj = Shape(i)\nk = Slice(j, zero, one)\n"
        "l = Concat<axis=0>(k, one)\nm = Reshape(i, l)\ny = Softmax(m)"
    )
    weights: Any = {"w": (8, 4, 3, 3), "b": (8,), "low": 0.0, "v": (10, 8)}
    return bytes(
        model(
            nodes, weights | {"axes": [2, 3], "flat": [0, -1], "one": [1], "zero": [0]}, opset=13
        ).SerializeToString()
    )


def outcome(path: Path, content: bytes) -> PredictResult | QuadranasError:
    """What predict makes of a file: a result, or an error that the user can fix."""
    path.write_bytes(content)
    try:
        return predict(path, device="vpu")
    except QuadranasError as error:
        return error


def test_the_file_to_be_damaged_is_whole(tmp_path: Path) -> None:
    found = outcome(tmp_path / "net.onnx", whole_file())
    assert isinstance(found, PredictResult)
    assert found.unpriced == ()
    assert len(found.operators) == 6


ANY_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@ANY_FOLDER
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    assert isinstance(outcome(tmp_path / "net.onnx", content), QuadranasError)


@ANY_FOLDER
@given(st.floats(0, 1, exclude_max=True))
def test_a_cut_off_file_is_refused(tmp_path: Path, share: float) -> None:
    content = whole_file()[: int(share * len(whole_file()))]
    assert isinstance(outcome(tmp_path / "net.onnx", content), QuadranasError)


@settings(ANY_FOLDER, max_examples=400)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4))
def test_a_damaged_file_is_priced_or_refused(
    tmp_path: Path, changes: list[tuple[float, int]]
) -> None:
    content = bytearray(whole_file())
    for share, byte in changes:
        content[int(share * len(content))] = byte
    found = outcome(tmp_path / "net.onnx", bytes(content))
    assert isinstance(found, QuadranasError) or found.latency_ms >= 0
