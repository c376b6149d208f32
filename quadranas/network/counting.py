"""Counting parameters and MACs of a network."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from quadranas.network.modes import evaluating


def count_network(network: nn.Module, resolution: int) -> tuple[int, int]:
    """The number of parameters of any image network, and of its MACs at batch 1.

    For a network described by an architecture without changes, `quadranas.space.cost` computes
    the same numbers from the description alone.
    """
    parameter = next(network.parameters())
    image = torch.zeros(1, 3, resolution, resolution, device=parameter.device)
    with evaluating(network), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image.to(parameter.dtype))
    macs = counter.get_total_flops() // 2
    return sum(parameter.numel() for parameter in network.parameters()), macs
