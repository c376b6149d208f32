"""What becomes one launch, and what costs nothing."""

from pathlib import Path

import pytest

from quadranas.prediction.fusion import fuse
from quadranas.prediction.graph import Graph, Node, read_graph
from tests.onnx_files import Weights, write

# Tensors of 8 channels; what the examples share.
WEIGHTS: Weights = {
    **{"w": (8, 8, 1, 1), "channel": (8, 1, 1), "last": (8,), "image": (1, 8, 16, 16)},
    **{"half": 0.5, "three": 3.0, "zero": 0.0, "six": 6.0},
    **{"one": [1], "spatial": [2, 3], "flat": [1, -1], "shuffled": [1, 2, 4, 16, 16]},
    **{"same": [1, 8, 16, 16], "around": [0, 0, 1, 1, 0, 0, 1, 1]},
}
NORM = "BatchNormalization({}, last, last, last, last)"

EXAMPLES = {
    "convolution, norm, activation": (
        f"a = Conv(x, w)\nb = {NORM.format('a')}\ny = Relu(b)",
        ["Conv BatchNormalization Relu"],
    ),
    "bounded activation": ("a = Conv(x, w)\ny = Clip(a, zero, six)", ["Conv Clip"]),
    "residual sum": (
        "a = Conv(x, w)\nb = Add(a, x)\ny = Relu(b)",
        ["Conv", "Add Relu"],
    ),
    "norm and activation before a convolution": (
        f"a = {NORM.format('x')}\nb = Relu(a)\nc = Conv(b, w)\ny = Add(c, x)",
        ["BatchNormalization Relu", "Conv", "Add"],
    ),
    "an output needed as it is": (
        "a = Conv(x, w)\nb = Relu(a)\ny = Add(a, b)",
        ["Conv", "Relu Add"],
    ),
    "norm after activation": (
        f"a = Conv(x, w)\nb = Relu(a)\ny = {NORM.format('b')}",
        ["Conv Relu", "BatchNormalization"],
    ),
    "layer scale": ("a = Conv(x, w)\ny = Mul(channel, a)", ["Conv Mul"]),
    "layer scale of a quadratic layer": (
        "a = Conv(x, w)\nb = Conv(x, w)\nc = Conv(x, w)\n"
        "d = Mul(a, b)\ne = Add(c, d)\ny = Mul(e, channel)",
        ["Conv", "Conv", "Conv", "Mul", "Add Mul"],
    ),
    "scale of a sum with something that cannot take it up": (
        "a = Conv(x, w)\nb = Add(a, x)\ny = Mul(b, channel)",
        ["Conv", "Add", "Mul"],
    ),
    "a whole image added": ("a = Conv(x, w)\ny = Add(a, image)", ["Conv", "Add"]),
    "division by the output": ("a = Conv(x, w)\ny = Div(half, a)", ["Conv", "Div"]),
    "subtraction from a number": ("a = Conv(x, w)\ny = Sub(half, a)", ["Conv Sub"]),
    "GELU": (
        "a = Conv(x, w)\nb = Div(a, half)\nc = Erf(b)\nd = Add(c, half)\n"
        "e = Mul(a, d)\ny = Mul(e, half)",
        ["Conv", "Div Erf Add Mul Mul"],
    ),
    "LayerNorm": (
        "m = ReduceMean(x, one)\nd = Sub(x, m)\ns = Mul(d, d)\nv = ReduceMean(s, one)\n"
        "e = Add(v, half)\nr = Sqrt(e)\nn = Div(d, r)\no = Mul(n, channel)\ny = Add(o, channel)",
        ["ReduceMean Sub Mul ReduceMean Add Sqrt Div Mul Add"],
    ),
    "softmax": (
        "m = ReduceMax(x, one)\nd = Sub(x, m)\ne = Exp(d)\ns = ReduceSum(e, one)\ny = Div(e, s)",
        ["ReduceMax Sub Exp ReduceSum Div"],
    ),
    "pooling is no step of a norm": (
        "a = ReduceMean(x, spatial)\nb = LayerNormalization(a, channel)\ny = Relu(b)",
        ["ReduceMean", "LayerNormalization", "Relu"],
    ),
    "views": (
        "a = Identity(x)\nb = Dropout(a)\nc = Reshape(b, same)\n"
        "d = Transpose<perm=[0,2,3,1]>(c)\nf = Flatten(d)\ny = Reshape(f, flat)",
        [],
    ),
    "layouts between operators": (
        "a = Conv(x, w)\nb = Transpose<perm=[0,2,3,1]>(a)\nc = Mul(b, last)\n"
        "d = Transpose<perm=[0,3,1,2]>(c)\ny = Relu(d)",
        ["Conv Mul Relu"],
    ),
    "channel shuffle": (
        "a = Reshape(x, shuffled)\nb = Transpose<perm=[0,2,1,3,4]>(a)\ny = Reshape(b, same)",
        ["Transpose"],
    ),
    "a transpose of one pixel": (
        "a = GlobalAveragePool(x)\ny = Transpose(a)",
        ["GlobalAveragePool"],
    ),
    "padding": ("a = Pad(x, around)\ny = Conv(a, w)", ["Conv"]),
    "padding alone": ("a = Pad(x, around)\ny = Relu(a)", ["Pad", "Relu"]),
    "shapes and weights": (
        "s = Shape(x)\nt = Cast<to=7>(s)\nv = Relu(w)\na = Conv(x, v)\ny = Reshape(a, t)",
        ["Conv"],
    ),
    "squeeze and excitation": (
        "a = GlobalAveragePool(x)\nb = Conv(a, w)\nc = Relu(b)\nd = Conv(c, w)\n"
        "e = Sigmoid(d)\ny = Mul(x, e)",
        ["GlobalAveragePool", "Conv Relu", "Conv", "Sigmoid", "Mul"],
    ),
}

HARD_SWISH = {
    "one operator": "y = HardSwish(a)",
    "hard sigmoid": "b = HardSigmoid<alpha=0.1666667>(a)\ny = Mul(a, b)",
    "clip": "b = Add(a, three)\nc = Clip(b, zero, six)\nd = Mul(a, c)\ny = Div(d, six)",
    "clip, divided": "b = Add(a, three)\nc = Clip(b, zero, six)\nd = Div(c, six)\ny = Mul(a, d)",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_launches(tmp_path: Path, name: str) -> None:
    nodes, expected = EXAMPLES[name]
    launches, unpriced = fuse(read_graph(write(tmp_path / "net.onnx", nodes, WEIGHTS)))
    assert [" ".join(node.op for node in launch.nodes) for launch in launches] == expected
    assert unpriced == []


@pytest.mark.parametrize("name", HARD_SWISH)
def test_a_hard_swish_is_one_launch_however_it_is_written(tmp_path: Path, name: str) -> None:
    nodes = f"a = Conv(x, w)\n{HARD_SWISH[name]}"
    launches, _ = fuse(read_graph(write(tmp_path / "net.onnx", nodes, WEIGHTS)))
    assert [launch.kind for launch in launches] == ["pointwise", "sigmoid"]
    assert (launches[1].reads, launches[1].writes, launches[1].num_params) == (2048, 2048, 0)


def test_every_tensor_that_leaves_a_launch_is_written_once(tmp_path: Path) -> None:
    nodes = (
        "a = Sigmoid(x)\nb = Tanh(a)\nc = Conv(a, w)\nd = Conv(a, w)\ne = Add(c, d)\ny = Add(e, b)"
    )
    launches, _ = fuse(read_graph(write(tmp_path / "net.onnx", nodes, WEIGHTS)))
    assert [launch.writes // 2048 for launch in launches] == [2, 1, 1, 1, 1]
    assert [launch.reads // 2048 for launch in launches] == [1, 1, 1, 2, 2]


def test_a_bias_is_read_and_a_norm_is_not(tmp_path: Path) -> None:
    nodes = f"a = Conv(x, w)\nb = {NORM.format('a')}\ny = Add(b, channel)"
    ((launch,), _) = fuse(read_graph(write(tmp_path / "net.onnx", nodes, WEIGHTS)))
    assert launch.num_params == 8 * 8 + 8


def test_what_is_not_known_is_handed_back(tmp_path: Path) -> None:
    """What follows it is priced as far as its shapes are known."""
    nodes = "a = Conv(x, w)\nb = Det(a)\nc = my.domain.Thing(a)\nd = Relu(c)\ny = Relu(a)"
    nodes = nodes.replace("my.domain.Thing", "Thing")
    launches, unpriced = fuse(read_graph(write(tmp_path / "net.onnx", nodes, WEIGHTS)))
    assert [launch.nodes[0].op for launch in launches] == ["Conv", "Relu"]
    assert [node.op for node in unpriced] == ["Det", "Thing", "Relu"]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
@pytest.mark.parametrize("inputs", [("x",), ("x", ""), ("", "x")])
def test_an_operator_without_an_operand_is_handed_back(op: str, inputs: tuple[str, ...]) -> None:
    """A damaged file whose shapes were inferred all the same."""
    node = Node(name="n", op=op, inputs=inputs, outputs=("y",), attributes={})
    graph = Graph(
        nodes=(node,),
        shapes={"x": (2, 2), "y": (2, 2)},
        constants=frozenset(),
        values={},
        inputs=("x",),
        outputs=("y",),
    )
    assert fuse(graph) == ([], [node])
