"""Quadratic layers and the candidate operations: one class per kind of OpSpec."""

from typing import Protocol

from torch import nn

from quadranas.layers.convnext import QuadraticConvNeXt
from quadranas.layers.mbconv import ConvBN, LinearHead, MBConv, QuadraticMBConv
from quadranas.layers.quadranet import (
    Downsample,
    FeedForward,
    NormHead,
    PatchStem,
    QuadraticDepthwise,
)
from quadranas.space.operation import OpSpec


class OpFactory(Protocol):
    """Builds the module of an OpSpec; `layer_scale` is the initial value of its gammas, if any."""

    def __call__(self, spec: OpSpec, layer_scale: float) -> nn.Module: ...  # noqa: D102


OPS: dict[str, OpFactory] = {
    "patch_stem": PatchStem,
    "downsample": Downsample,
    "quadratic_depthwise": QuadraticDepthwise,
    "feed_forward": FeedForward,
    "quadratic_convnext": QuadraticConvNeXt,
    "norm_head": NormHead,
    "conv_bn": ConvBN,
    "mbconv": MBConv,
    "quadratic_mbconv": QuadraticMBConv,
    "linear_head": LinearHead,
}


def build_op(spec: OpSpec, layer_scale: float = 1.0) -> nn.Module:
    """The module of an operation, with PyTorch's default initialisation."""
    return OPS[spec.kind](spec, layer_scale)
