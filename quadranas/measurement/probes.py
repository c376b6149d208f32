"""Probes: small networks whose timings give an operation's latency, and random whole ones."""

from collections.abc import Sequence

import torch
from torch import nn

from quadranas.layers import build_op
from quadranas.network.skeleton import build_subnet
from quadranas.space.architecture import Architecture
from quadranas.space.operation import OpSpec

REFERENCE_OP = OpSpec(
    kind="conv_bn", in_channels=32, out_channels=32, kernel_size=3, resolution=56
)


def preserves_shape(spec: OpSpec) -> bool:
    """Whether input and output have the same shape, so that the operation can be repeated."""
    return not spec.is_head and spec.stride == 1 and spec.in_channels == spec.out_channels


def chain_probe(specs: Sequence[OpSpec]) -> nn.Sequential:
    """Operations one after another, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*map(build_op, specs)).eval()


def null_probe() -> nn.Module:
    """A single ReLU: its latency on a tiny input is the cost of a call."""
    return nn.ReLU().eval()


def network_probe(architecture: Architecture) -> nn.Module:
    """A whole network, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_subnet(architecture).eval()
