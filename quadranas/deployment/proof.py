"""The proof of an exported file: it computes what PyTorch computes, or where it begins not to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from quadranas.backends.interface import Conversion, FileBackend, Program
from quadranas.network.skeleton import Network

TOLERANCES = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 2e-2, "bf16": 1e-1}
"""Largest allowed error relative to the largest output, by the coarser precision of weights and
computation. Float32 sums in another order; the others have 11, 11 and 8 significant bits, and
errors add up over 30 layers."""


@dataclass(frozen=True)
class Comparison:
    """A file's outputs beside PyTorch's.

    Args:
        largest: error of any output.
        relative: the same relative to the largest output.
        top1_agreement: share of inputs with the same first answer.
    """

    largest: float
    relative: float
    top1_agreement: float


def compare(got: Tensor, expected: Tensor) -> Comparison:
    """Compare outputs, (N, ...); anything that is not a number counts as an infinite error."""
    error = (got - expected).abs().nan_to_num(torch.inf, torch.inf).max()
    same = got.flatten(1).argmax(1) == expected.flatten(1).argmax(1)
    return Comparison(
        largest=float(error),
        relative=float(error / expected.abs().max().clamp(min=1e-12)),
        top1_agreement=float(same.float().mean()),
    )


@torch.no_grad()
def pytorch_outputs(network: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """What a network in evaluation mode computes in PyTorch."""
    network.eval()
    return torch.cat([network(images) for images in batches])


def program_outputs(program: Program, batches: Iterable[Tensor]) -> Tensor:
    """What a program computes in its runtime."""
    return torch.cat([program.run(images) for images in batches])


def layers_of(network: Network) -> list[tuple[str, nn.Module]]:
    """A network's operations by their paths, in the order of computation."""
    return [
        (f"blocks.{name}.{kind}", operation)
        for name, block in network.blocks.items()
        for kind, operation in block.named_children()
    ]


def first_diverging_layer(
    backend: FileBackend,
    network: Network,
    conversion: Conversion,
    images: Tensor,
    tolerance: float,
) -> str:
    """The first layer after which a runtime's values are further from PyTorch's than allowed.

    The network up to a layer is converted and run as the whole one was, and the layer found by
    bisection: what diverged once stays apart.

    Args:
        images: of the shape of the conversion.

    Returns: its path and the error after it; empty where no part of the network diverges.
    """
    layers = layers_of(network)
    below, found, error = 0, len(layers) + 1, 0.0
    while found - below > 1:
        middle = (below + found) // 2
        relative = _error_up_to(backend, [op for _, op in layers[:middle]], conversion, images)
        if relative <= tolerance:
            below = middle
        else:
            found, error = middle, relative
    if found > len(layers):
        return ""
    return f"{layers[found - 1][0]} (error {error:.2g} of its largest value)"


def _error_up_to(
    backend: FileBackend, operations: Sequence[nn.Module], conversion: Conversion, images: Tensor
) -> float:
    part = nn.Sequential(*operations).eval()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "part.xml"
        backend.convert(part, conversion, path)
        got = backend.load(path, images.shape).run(images)
    return compare(got, pytorch_outputs(part, [images])).relative
