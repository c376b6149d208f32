"""Modes of a network: evaluation, frozen parameters, frozen statistics of norms."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A context in which a network is in evaluation mode; each module gets its own mode back."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """A context in which parameters do not require gradients."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def batch_norms(network: nn.Module) -> list[BatchNorm]:
    """Every BatchNorm of a network."""
    return [module for module in network.modules() if isinstance(module, BatchNorm)]


@contextmanager
def kept_statistics(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """A context in which BatchNorms update their running averages with a share of zero.

    As `frozen_statistics`, but autograd stores the same tensors as outside of the context.
    """
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, number) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, number


@contextmanager
def frozen_statistics(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """A context in which training does not change the running averages of BatchNorms.

    The norms still normalise by the batch. In evaluation mode the context changes nothing.
    """
    tracking = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracked in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracked
