"""Convolutions with batch normalisation and inverted bottlenecks, in float64."""

from functools import partial

import pytest
import torch
from torch import nn

from quadranas.layers import build_op
from quadranas.layers.mbconv import MBConv
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


def test_activations_of_a_convolution_lie_within_zero_and_six() -> None:
    out = build_op(spec("conv_bn", kernel_size=3))(100 * torch.randn(4, 6, 8, 8))
    assert out.min() == 0
    flooded = build_op(spec("conv_bn", kernel_size=3)).eval()(1000 * torch.randn(4, 6, 8, 8))
    assert flooded.max() == 6
