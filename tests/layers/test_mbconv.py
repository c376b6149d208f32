"""Convolutions with batch normalisation and inverted bottlenecks, in float64."""

from functools import partial

import pytest
import torch
from torch import nn

from quadranas.layers import build_op
from quadranas.layers.mbconv import MBConv, QuadraticMBConv, depthwise_index
from quadranas.layers.quadratic import QuadraticConv2d
from tests import operations
from tests.operations import close

pytestmark = pytest.mark.usefixtures("float64")

spec = partial(operations.spec, channels=6, resolution=8)


@pytest.mark.parametrize(
    ("changes", "residual"),
    [
        ({}, True),
        ({"stride": 2}, False),
        ({"out_channels": 7}, False),
        ({"expand_ratio": 4}, True),
    ],
)
def test_an_inverted_bottleneck_adds_its_input_where_it_can(
    changes: dict[str, int], residual: bool
) -> None:
    op = build_op(spec("mbconv", kernel_size=3, **changes)).eval()
    assert isinstance(op, MBConv)
    x = torch.randn(2, 6, 8, 8)
    inside = op.layers(x)
    close(op(x), x + inside if residual else inside)
    assert len([m for m in op.modules() if isinstance(m, nn.Conv2d)]) == (
        3 if "expand_ratio" in changes else 2
    )


@pytest.mark.parametrize("changes", [{}, {"expand_ratio": 4, "stride": 2}])
def test_a_quadratic_bottleneck_squares_before_its_norm(changes: dict[str, int]) -> None:
    described = spec("quadratic_mbconv", kernel_size=3, **changes)
    op = build_op(described).eval()
    assert isinstance(op, QuadraticMBConv)
    index = depthwise_index(described)
    conv, norm = op.layers[index], op.layers[index + 1]
    assert isinstance(conv, QuadraticConv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean = torch.rand(norm.num_features)
    x = torch.randn(2, 6, 8, 8)
    inside = op.layers[:index](x)
    a, b, c = (branch(inside) for branch in conv.branches.values())
    expected = op.layers[index + 2 :](norm(a * b + c))
    close(op(x), expected if changes else x + expected)
    for parameter in conv.branches["a"].parameters():
        nn.init.zeros_(parameter)
    first_order = build_op(described.model_copy(update={"kind": "mbconv"})).eval()
    tensors = {n.replace(".c.", "."): t for n, t in op.state_dict().items()}
    first_order.load_state_dict({n: tensors[n] for n in first_order.state_dict()})
    close(op(x), first_order(x))


def test_activations_of_a_convolution_lie_within_zero_and_six() -> None:
    out = build_op(spec("conv_bn", kernel_size=3))(100 * torch.randn(4, 6, 8, 8))
    assert out.min() == 0
    flooded = build_op(spec("conv_bn", kernel_size=3)).eval()(1000 * torch.randn(4, 6, 8, 8))
    assert flooded.max() == 6
