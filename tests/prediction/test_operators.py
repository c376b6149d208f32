"""ONNX operators as primitives, against plain arithmetic."""

from pathlib import Path

import pytest

from quadranas.prediction.fusion import fuse
from quadranas.prediction.graph import read_graph
from quadranas.space.cost import Primitive
from tests.onnx_files import Weights, write

PIXELS = 16 * 16


def only_primitive(
    folder: Path, nodes: str, weights: Weights | None = None, image: object = (1, 8, 16, 16)
) -> Primitive:
    launches, unpriced = fuse(read_graph(write(folder / "net.onnx", nodes, weights, image)))
    assert unpriced == []
    (launch,) = launches
    return launch.primitive


def test_a_convolution(tmp_path: Path) -> None:
    nodes = "y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)"
    got = only_primitive(tmp_path, nodes, {"w": (12, 8, 3, 3), "b": (12,)})
    assert got == Primitive(
        kind="conv",
        in_channels=8,
        out_channels=12,
        reads=8 * PIXELS,
        writes=12 * 64,
        num_macs=8 * 12 * 9 * 64,
        num_params=8 * 12 * 9 + 12,
    )


@pytest.mark.parametrize(
    ("weights", "groups", "kind", "channels", "macs"),
    [
        ((12, 8, 1, 1), 1, "pointwise", (8, 12), 8 * 12 * PIXELS),
        ((8, 1, 1, 1), 8, "depthwise", (8, 8), 8 * PIXELS),
        ((16, 1, 1, 1), 8, "depthwise", (8, 16), 16 * PIXELS),
        ((12, 4, 1, 1), 2, "pointwise", (4, 6), 4 * 12 * PIXELS),
        ((8, 2, 3, 3), 4, "conv", (2, 2), 2 * 8 * 9 * PIXELS),
    ],
)
def test_convolutions_in_groups(
    tmp_path: Path,
    weights: tuple[int, ...],
    groups: int,
    kind: str,
    channels: tuple[int, int],
    macs: int,
) -> None:
    pad = weights[2] // 2
    nodes = f"y = Conv<group={groups}, pads=[{pad},{pad},{pad},{pad}]>(x, w)"
    got = only_primitive(tmp_path, nodes, {"w": weights})
    assert (got.kind, got.in_channels, got.out_channels) == (kind, *channels)
    assert got.num_macs == macs


def test_a_transposed_convolution_multiplies_at_every_input(tmp_path: Path) -> None:
    got = only_primitive(tmp_path, "y = ConvTranspose<strides=[2,2]>(x, w)", {"w": (8, 5, 2, 2)})
    assert (got.kind, got.in_channels, got.out_channels) == ("conv", 8, 5)
    assert got.num_macs == PIXELS * 8 * 5 * 4
    assert got.writes == 4 * PIXELS * 5


@pytest.mark.parametrize(
    ("nodes", "image", "weights", "kind", "channels", "macs"),
    [
        ("y = Gemm<transB=1>(x, w, b)", (1, 6), (10, 6), "linear", (6, 10), 60),
        ("y = MatMul(x, w)", (1, 6), (6, 10), "linear", (6, 10), 60),
        ("y = MatMul(w, x)", (6, 7), (10, 6), "pointwise", (6, 10), 420),
        ("y = MatMul(x, w)", (1, 7, 6), (6, 10), "pointwise", (6, 10), 420),
        ("y = MatMul(x, w)", (1, 1, 1, 6), (6, 10), "pointwise", (6, 10), 60),
    ],
)
def test_linear_layers(
    tmp_path: Path,
    nodes: str,
    image: tuple[int, ...],
    weights: tuple[int, int],
    kind: str,
    channels: tuple[int, int],
    macs: int,
) -> None:
    """On a map of one pixel a layer stays what it is on a larger one, as in the tables."""
    bias: Weights = {"b": (10,)} if "b)" in nodes else {}
    got = only_primitive(tmp_path, nodes, {"w": weights, **bias}, image)
    assert (got.kind, got.in_channels, got.out_channels) == (kind, *channels)
    assert got.num_macs == macs
    assert got.num_params == 60 + 10 * len(bias)


def test_a_product_of_two_tensors_has_no_weights(tmp_path: Path) -> None:
    nodes = "t = Transpose<perm=[0,2,1]>(x)\ny = MatMul(x, t)"
    got = only_primitive(tmp_path, nodes, image=(1, 7, 6))
    assert (got.kind, got.num_macs, got.num_params) == ("pointwise", 7 * 7 * 6, 0)
    assert (got.reads, got.writes) == (42, 49)


@pytest.mark.parametrize(
    ("nodes", "kind", "reads", "writes"),
    [
        ("y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", "elementwise", 2048, 512),
        ("y = GlobalAveragePool(x)", "elementwise", 2048, 8),
        ("y = ReduceMean<keepdims=0>(x, spatial)", "elementwise", 2048, 8),
        ("y = Concat<axis=1>(x, x)", "join", 2048, 4096),
        ("y, z = Split<axis=1, num_outputs=2>(x)", "join", 2048, 1024),
        ("y = Slice(x, zero, two, one)", "elementwise", 512, 512),
        ("y = DepthToSpace<blocksize=2>(x)", "elementwise", 2048, 2048),
        ("y = Softmax(x)", "elementwise", 2048, 2048),
        ("y = Mul(x, x)", "elementwise", 2048, 2048),
        ("y = HardSwish(x)", "sigmoid", 2048, 2048),
    ],
)
def test_memory_traffic(tmp_path: Path, nodes: str, kind: str, reads: int, writes: int) -> None:
    """Each tensor is read once; a slice reads what it writes, an output nobody wants is free."""
    weights: Weights = {"spatial": [2, 3], "zero": [0], "one": [1], "two": [2]}
    nodes = nodes.replace("y, z", "y, z")
    got = only_primitive(tmp_path, f"{nodes}\nw = Identity(y)", weights)
    assert (got.kind, got.reads, got.writes, got.num_macs) == (kind, reads, writes, 0)
