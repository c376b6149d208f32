"""Comparing an exported file with PyTorch, and finding the first layer that differs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from quadranas.backends.interface import Conversion, FileBackend, Program
from quadranas.network.modes import evaluating
from quadranas.network.skeleton import Network

TOLERANCES = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 2e-2, "bf16": 1e-1, "int8": 1e-3}
"""Largest allowed error relative to the largest output, by the coarser precision of weights and
computation. Runtimes add float32 numbers in different orders; the other precisions have 11, 11 and
8 significant bits, and errors add up over 30 layers. A device with int8 runs a file in floating
point, as it is before it is quantised, in fp32."""


@dataclass(frozen=True)
class Comparison:
    """A file's outputs compared with PyTorch's.

    Args:
        largest: largest error of any output.
        relative: the largest error relative to the largest output.
        top1_agreement: share of inputs for which both predict the same class.
    """

    largest: float
    relative: float
    top1_agreement: float


def compare(got: Tensor, expected: Tensor) -> Comparison:
    """Compare outputs, (N, ...); NaN counts as an infinite error."""
    error = (got - expected).abs().nan_to_num(torch.inf, torch.inf).max()
    same = got.flatten(1).argmax(1) == expected.flatten(1).argmax(1)
    return Comparison(
        largest=float(error),
        relative=float(error / expected.abs().max().clamp(min=1e-12)),
        top1_agreement=float(same.float().mean()),
    )


def pytorch_outputs(network: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Outputs of a network in PyTorch, in evaluation mode."""
    with torch.no_grad(), evaluating(network):
        return torch.cat([network(images) for images in batches])


def program_outputs(program: Program, batches: Iterable[Tensor]) -> Tensor:
    """Outputs of a program in its runtime."""
    return torch.cat([program.run(images) for images in batches])


def layers_of(network: Network) -> list[tuple[str, nn.Module]]:
    """A network's operations and their paths, in the order of computation."""
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
    *,
    tolerance: float,
    suffix: str,
) -> str:
    """The first layer after which a runtime's values differ from PyTorch's by more than allowed.

    Found by bisection: the network up to a layer is converted and run like the whole one, and
    values that differ after one layer also differ after later ones.

    Args:
        images: images of the conversion's input shape.
        suffix: file name suffix of the runtime's format.

    Returns: path of the layer and the error after it; empty if no part of the network differs.
    """
    layers = layers_of(network)
    below, found, error = 0, len(layers) + 1, 0.0
    while found - below > 1:
        middle = (below + found) // 2
        part = [operation for _, operation in layers[:middle]]
        relative = _error_of(backend, part, conversion, images, suffix)
        if relative <= tolerance:
            below = middle
        else:
            found, error = middle, relative
    if found > len(layers):
        return ""
    return f"{layers[found - 1][0]} (error {error:.2g} of its largest value)"


def _error_of(
    backend: FileBackend,
    operations: Sequence[nn.Module],
    conversion: Conversion,
    images: Tensor,
    suffix: str,
) -> float:
    part = nn.Sequential(*operations).eval()
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"part{suffix}"
        backend.convert(part, conversion, path)
        got = backend.load(path, images.shape).run(images)
    return compare(got, pytorch_outputs(part, [images])).relative
