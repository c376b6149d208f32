"""Networks that no runtime can execute are refused by the name of the operator."""

from pathlib import Path
from typing import Any

import pytest

from quadranas.errors import QuadranasError
from quadranas.prediction.graph import read_graph
from tests.onnx_files import Weights, write

WEIGHTS: Weights = {
    **{"w": (8, 8, 3, 3), "five": (8, 5, 3, 3), "odd": (9, 4, 3, 3), "flat": (8, 8)},
    **{"line": (8, 8, 3), "b": (7,), "row": (1, 9), "v": (5, 10), "c": (9, 1, 1)},
    **{"wrong": [1, 8, 16, 17], "two": [-1, -1], "rest": [3, -1], "one": [1]},
}

FAULTS: dict[str, tuple[str, str]] = {
    "channels": ("n = Conv(x, five)", "its input has 8 channels, its weights are for 5"),
    "channels in groups": ("n = Conv<group=2>(x, w)", "8 channels, its weights are for 16"),
    "no groups": ("n = Conv<group=0>(x, w)", "its number of groups is 0"),
    "negative groups": ("n = Conv<group=-1>(x, w)", "its number of groups is -1"),
    "filters": ("n = Conv<group=2>(x, odd)", "9 filters cannot be divided into 2 groups"),
    "flat weights": ("n = Conv(x, flat)", "its weights have the shape 8x8"),
    "weights of one dimension": ("n = Conv(x, line)", "4 dimensions, its weights 3"),
    "bias": ("n = Conv(x, w, b)", "its bias has the shape 7 instead of 8"),
    "kernel": ("n = Conv<kernel_shape=[5,5]>(x, w)", "its kernel is 5x5, its weights 8x8x3x3"),
    "stride": ("n = Conv<strides=[0,0]>(x, w)", "strides must only contain positive values"),
    "small image": ("n = Conv<dilations=[9,9]>(x, w)", "the shape 1x8x-2x-2"),
    "transposed": ("n = ConvTranspose(x, odd)", "8 channels, its weights are for 9"),
    "transposed groups": ("n = ConvTranspose<group=0>(x, w)", "its number of groups is 0"),
    "pool": ("n = MaxPool<kernel_shape=[17,17]>(x)", "the shape 1x8x0x0"),
    "norm": ("n = BatchNormalization(x, b, b, b, b)", "between 7 and 8"),
    "norm per image": ("n = InstanceNormalization(x, b, b)", "the shape 7 instead of 8"),
    "layer norm": ("n = LayerNormalization(x, b)", "the shape 7 does not fit 1x8x16x16"),
    "slopes": ("n = PRelu(x, c)", "the shape 9x1x1 does not fit 1x8x16x16"),
    "sum": ("n = Add(x, c)", "Incompatible dimensions"),
    "product": ("n = MatMul(x, v)", "Incompatible dimensions for matrix multiplication"),
    "linear": ("f = Flatten(x)\nn = Gemm(f, v)", "mismatch"),
    "join": ("n = Concat<axis=0>(x, w)", "differ"),
    "reshape": ("n = Reshape(x, wrong)", r"2,048 elements\) cannot become 1x8x16x17 \(2,176\)"),
    "two open sizes": ("n = Reshape(x, two)", "multiple -1 dimensions"),
    "reshape with a rest": ("n = Reshape(x, rest)", "incompatible shapes"),
    "squeeze": ("n = Squeeze(x, one)", "must be 1 instead of 8"),
    "permutation": ("n = Transpose<perm=[0,1,2]>(x)", "0x1x2 is not one of 4 axes"),
    "blocks": ("n = DepthToSpace<blocksize=4>(x)", "the shape 1x0x64x64"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_impossible_operator(tmp_path: Path, name: str) -> None:
    nodes, fault = FAULTS[name]
    path = write(tmp_path / "net.onnx", f"{nodes}\ny = Relu(n)", WEIGHTS)
    with pytest.raises(QuadranasError, match=fault) as caught:
        read_graph(path)
    assert "no runtime can execute its operator 'n' (" in caught.value.message


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ("y = Conv<group=2>(x, half, eight)", (1, 8, 14, 14)),
        ("y = ConvTranspose<group=2>(x, half, eight)", (1, 8, 18, 18)),
        ("y = LayerNormalization<axis=1>(x, whole)", (1, 8, 16, 16)),
        ("y = PRelu(x, scalar)", (1, 8, 16, 16)),
        ("y = Reshape(x, zeros)", (1, 8, 256)),
    ],
)
def test_operands_that_fit(tmp_path: Path, nodes: str, shape: tuple[int, ...]) -> None:
    weights: Any = {"half": (8, 4, 3, 3), "eight": (8,), "whole": (8, 16, 16), "scalar": 0.1}
    path = write(tmp_path / "net.onnx", nodes, weights | {"zeros": [0, 0, -1]})
    assert read_graph(path).shapes["y"] == shape
