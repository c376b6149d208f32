"""Which sizes of an input have to be named, and what the hint says."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from quadranas.errors import QuadranasError
from quadranas.prediction.graph import read_graph
from quadranas.prediction.inputs import parse_inputs
from tests.onnx_files import Weights, model, write

WEIGHTS: Weights = {"w": (8, 3, 3, 3), "v": (8, 3, 3, 3, 3), "zero": [0], "m": (16, 4)}
FIRST = "u = Unsqueeze(x, zero)\ny = Conv(u, w)"
LAST = "u = Unsqueeze(x, zero)\nt = Transpose<perm=[0,3,1,2]>(u)\ny = Conv(t, w)"
NHWC = "t = Transpose<perm=[0,3,1,2]>(x)\ny = Conv(t, w)"

OPEN: dict[str, tuple[str, Any]] = {
    "channels first": ("y = Conv(x, w)", ("N", 3, "h", "w_")),
    "channels last": (NHWC, ("unk__1", "unk__2", "unk__3", 3)),
    "open channels": ("y = Conv(x, w)", ("N", "C", "H", "W")),
    "an image alone": (FIRST, (3, "h", "w_")),
    "an image alone, channels last": (LAST, ("height", 64, 3)),
    "not square": ("y = Conv(x, w)", (1, 3, 160, "width")),
    "video": ("y = Conv(x, v)", ("N", 3, 8, "h", "w_")),
    "video of open length": ("y = Conv(x, v)", ("N", 3, "frames", 96, 96)),
    "tokens": ("y = MatMul(x, m)", ("batch", "tokens", 16)),
    "tokens without a name": ("y = MatMul(x, m)", (None, 16)),
}


@pytest.mark.parametrize("name", OPEN)
def test_the_option_in_the_hint_works(tmp_path: Path, name: str) -> None:
    nodes, shape = OPEN[name]
    path = write(tmp_path / "net.onnx", nodes, WEIGHTS, image=shape)
    with pytest.raises(QuadranasError, match="of its input 'x' is dynamic; inputs: x ") as caught:
        read_graph(path)
    option = re.search(r"--input (\S+)", caught.value.hint)
    assert option is not None
    inputs = parse_inputs(shlex.split(option[1]))
    graph = read_graph(path, inputs=inputs)
    assert graph.shapes["x"] == inputs["x"]
    assert graph.size("y") > 0
    if "--resolution" in caught.value.hint:
        graph = read_graph(path, resolution=224)
        assert graph.shapes["x"].count(224) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("channels first", (1, 3, 96, 96)),
        ("channels last", (1, 96, 96, 3)),
        ("an image alone", (3, 96, 96)),
        ("video", (1, 3, 8, 96, 96)),
    ],
)
def test_a_resolution_fills_height_and_width(
    tmp_path: Path, name: str, expected: tuple[int, ...]
) -> None:
    nodes, shape = OPEN[name]
    path = write(tmp_path / "net.onnx", nodes, WEIGHTS, image=shape)
    assert read_graph(path, resolution=96).shapes["x"] == expected


@pytest.mark.parametrize(
    "name", ["open channels", "video of open length", "tokens", "an image alone, channels last"]
)
def test_a_resolution_fills_nothing_else(tmp_path: Path, name: str) -> None:
    nodes, shape = OPEN[name]
    path = write(tmp_path / "net.onnx", nodes, WEIGHTS, image=shape)
    with pytest.raises(QuadranasError, match="is dynamic"):
        read_graph(path, resolution=96)


def test_a_resolution_that_no_input_has(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", "y = MatMul(x, m)", WEIGHTS, image=(1, 16))
    with pytest.raises(QuadranasError, match=r"no input is an image of 32x32 pixels: x \(1, 16\)"):
        read_graph(path, resolution=32)


def write_two(path: Path, second: tuple[Any, ...]) -> Path:
    """A file with a second input of integers, which an embedding is read at."""
    whole = model(
        "e = Gather(m, ids)\ny = Conv(x, w)", {"w": (8, 3, 1, 1), "m": (9, 4)}, ("N", 3, 32, 32)
    )
    kind = onnx.TensorProto.INT64
    whole.graph.input.append(onnx.helper.make_tensor_value_info("ids", kind, second))
    whole.graph.output.append(onnx.helper.make_empty_tensor_value_info("e"))
    path.write_bytes(whole.SerializeToString())
    return path


def test_every_input_is_listed(tmp_path: Path) -> None:
    path = write_two(tmp_path / "net.onnx", ("N", "tokens"))
    with pytest.raises(QuadranasError) as caught:
        read_graph(path, resolution=32)
    assert "inputs: x (N, 3, 32, 32), ids (N, tokens)" in caught.value.message
    assert caught.value.hint.endswith("--input ids=1,128")
    graph = read_graph(path, inputs={"ids": (1, 77)})
    assert (graph.shapes["x"], graph.shapes["e"]) == ((1, 3, 32, 32), (1, 77, 4))


def test_sizes_of_one_name_are_one_size(tmp_path: Path) -> None:
    path = write_two(tmp_path / "net.onnx", ("N", 5))
    assert read_graph(path).shapes["e"] == (1, 5, 4)
    assert read_graph(path, inputs={"x": (6, 3, 32, 32)}).shapes["e"] == (6, 5, 4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"X": (1, 3, 8, 8)}, "unknown input 'X'; accepted: x\n"),
        ({"x": (3, 8, 8)}, r"its input x \(N, 3, h, w_\) has 4 sizes, not 3 \(3,8,8\)"),
        ({"x": (1, 4, 8, 8)}, "dimension 1 of its input .* is fixed at 3, not 4"),
        ({"x": (1, 3, 0, 8)}, "input 'x' cannot have the shape 1,3,0,8"),
        ({"x": (1, 3, 8, 10**16)}, "input 'x' cannot have the shape"),
        ({"x": (1, 3, 8, 8.0)}, "input 'x' cannot have the shape"),
        ({"x": (True, 3, 8, 8)}, "input 'x' cannot have the shape"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path: Path, inputs: Any, message: str) -> None:
    nodes, shape = OPEN["channels first"]
    path = write(tmp_path / "net.onnx", nodes, WEIGHTS, image=shape)
    with pytest.raises(QuadranasError, match=message):
        read_graph(path, inputs=inputs)


def test_options_become_shapes() -> None:
    options = ["x=1,96,96,3", "input:0=1,2", "a=b=7", "scalar="]
    expected = {"x": (1, 96, 96, 3), "input:0": (1, 2), "a=b": (7,), "scalar": ()}
    assert parse_inputs(options) == expected


@pytest.mark.parametrize(
    "option", ["x", "=1,2", "x=1,", "x=-1", "x=1x2", "x=a", "x=1.5", "x=" + "9" * 5000]
)
def test_options_of_another_form(option: str) -> None:
    with pytest.raises(QuadranasError, match="is not a name and sizes") as caught:
        parse_inputs([option])
    assert "--input x=1,96,96,3" in caught.value.hint


def test_an_input_named_twice() -> None:
    with pytest.raises(QuadranasError, match="--input names 'x' twice"):
        parse_inputs(["x=1", "x=2"])


def test_an_input_without_a_shape(tmp_path: Path) -> None:
    whole = model("y = Conv(x, w)", WEIGHTS)
    whole.graph.input[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "net.onnx"
    path.write_bytes(whole.SerializeToString())
    with pytest.raises(QuadranasError, match="its input 'x' has no shape") as caught:
        read_graph(path)
    assert "--input x=1,3,224,224" in caught.value.hint
    assert read_graph(path, inputs={"x": (1, 3, 9, 9)}).shapes["y"] == (1, 8, 7, 7)


def test_an_input_that_is_no_tensor(tmp_path: Path) -> None:
    whole = model("y = Relu(x)")
    tensor = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [1])
    whole.graph.input[0].type.CopyFrom(onnx.helper.make_sequence_type_proto(tensor))
    path = tmp_path / "net.onnx"
    path.write_bytes(whole.SerializeToString())
    with pytest.raises(QuadranasError, match="its input 'x' is not a tensor"):
        read_graph(path)


def test_sizes_computed_in_floating_point(tmp_path: Path) -> None:
    """`floor(size * 2)`, as an upsampling by a factor is exported."""
    nodes = (
        "s = Shape(x)\nc = Slice(s, zero, two)\nh = Slice(s, two, four)\nf = Cast<to=1>(h)\n"
        "g = Mul(f, factor)\ni = Floor(g)\nj = Cast<to=7>(i)\nk = Concat<axis=0>(c, j)\n"
        'u = Resize<mode="linear">(x, , , k)\ny = Relu(u)'
    )
    weights: Weights = {"zero": [0], "two": [2], "four": [4]}
    whole = model(nodes, weights, ("N", 3, "h", "w_"))
    factor = onnx.numpy_helper.from_array(np.array(1.5, np.float32), "factor")
    whole.graph.initializer.append(factor)
    path = tmp_path / "net.onnx"
    path.write_bytes(whole.SerializeToString())
    assert read_graph(path, resolution=15).shapes["y"] == (1, 3, 22, 22)
