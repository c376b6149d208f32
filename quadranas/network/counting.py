"""Counting: parameters and MACs of a network as it is."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_network(network: nn.Module, resolution: int) -> tuple[int, int]:
    """Parameters of any network of images, and its MACs at batch 1.

    For a network of plain operations `cost.py` counts the same from its description alone.
    """
    parameter = next(network.parameters())
    image = torch.zeros(1, 3, resolution, resolution, device=parameter.device)
    was_training = network.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(image.to(parameter.dtype))
    network.train(was_training)
    macs = counter.get_total_flops() // 2
    return sum(parameter.numel() for parameter in network.parameters()), macs
