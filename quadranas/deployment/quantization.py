"""Quantisation after training: as many layers in 8 bits as the accuracy allows.

All layers are tried first. If the accuracy drops too much, the layers whose rounding changes the
logits most stay in higher precision: 1, 2, 4 ... of them until the drop is allowed, then a binary
search for the fewest. For n layers, at most 2 log2(n) + 1 files are evaluated.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from quadranas.backends.interface import QuantizingBackend
from quadranas.deployment.manifest import Quantization
from quadranas.deployment.rounding import branch_ranges, layer_errors
from quadranas.errors import PromiseMissedError, QuadranasError
from quadranas.reporter import Reporter

NUM_ERROR_IMAGES = 16
"""Number of calibration inputs to compare layers on; all of them would take minutes."""

ROUNDING = 1e-9
"""Tolerance for rounding, in percentage points: 0.90 - 0.89 is more than 0.01."""


def quantized(
    backend: QuantizingBackend,
    source: Path,
    target: Path,
    *,
    network: nn.Module,
    images: Sequence[NDArray[np.float32]],
    accuracy: Callable[[Path], float],
    reference_accuracy: float,
    max_drop: float,
    reporter: Reporter | None = None,
) -> Quantization:
    """Write a converted file in 8 bits, with some layers in higher precision if necessary.

    Args:
        source: file that `backend.convert` wrote.
        target: path of the new file; nothing is written if this fails.
        network: the same network in PyTorch, for ranking the layers.
        images: calibration images, each an input of the file, (B, C, H, W).
        accuracy: computes the accuracy of a file, 0 to 1.
        reference_accuracy: accuracy of the network before, on the same images.
        max_drop: largest allowed drop of accuracy, in percentage points.

    Raises:
        PromiseMissedError: the drop is larger even with a single layer in 8 bits.
        QuadranasError: no calibration images, or no layer that can be quantised.
    """
    layers = backend.layers(source)
    if not layers or not images:
        missing = "layers that could be quantised" if not layers else "images for calibration"
        raise QuadranasError(f"{source.name} cannot be quantised: there are no {missing}")
    reporter = reporter or Reporter(quiet=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        search = _Search(
            backend, source, Path(folder) / target.name, images, accuracy, reference_accuracy,
            max_drop, reporter,
        )  # fmt: skip
        kept = () if search.keeps_promise(()) else search.fewest(_ranked(network, images, layers))
        drop = search.settle(kept)
        # The artefact last, so that its presence shows that all files are complete.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == target.name):
            file.replace(target.parent / file.name)
    return Quantization(
        num_layers=len(layers),
        kept=tuple(layer for layer in layers if layer in kept),
        num_calibration_images=sum(len(batch) for batch in images),
        max_drop=max_drop,
        drop=drop,
        ranges=branch_ranges(network, images),
    )


def _ranked(
    network: nn.Module, images: Sequence[NDArray[np.float32]], layers: Sequence[str]
) -> list[str]:
    """Layers in the order of how much their rounding changes the logits, largest first."""
    errors = layer_errors(network, images[:NUM_ERROR_IMAGES], layers)
    return sorted(layers, key=lambda layer: -errors[layer])


class _Search:
    """Quantises a file repeatedly, with different layers kept in higher precision."""

    def __init__(
        self,
        backend: QuantizingBackend,
        source: Path,
        target: Path,
        images: Sequence[NDArray[np.float32]],
        accuracy: Callable[[Path], float],
        reference_accuracy: float,
        max_drop: float,
        reporter: Reporter,
    ) -> None:
        self.backend, self.source, self.target, self.images = backend, source, target, images
        self.accuracy, self.reference_accuracy = accuracy, reference_accuracy
        self.max_drop, self.reporter = max_drop, reporter
        self.drops: dict[tuple[str, ...], float] = {}
        self.written: tuple[str, ...] | None = None

    def keeps_promise(self, kept: tuple[str, ...]) -> bool:
        """Whether the drop is allowed with some layers in higher precision."""
        self._write(kept)
        drop = 100 * (self.reference_accuracy - self.accuracy(self.target))
        self.drops[kept] = drop
        self.reporter.message(
            f"8 bits, {len(kept) or 'no'} layers in higher precision: "
            f"accuracy {-drop:+.2f} points, allowed {-self.max_drop:+.2f}"
        )
        return drop <= self.max_drop + ROUNDING

    def fewest(self, order: Sequence[str]) -> tuple[str, ...]:
        """The smallest number of first layers that must stay in higher precision.

        Raises:
            PromiseMissedError: the drop is too large even with all layers but one.
        """
        too_few, enough = 0, 1
        while enough < len(order) and not self.keeps_promise(tuple(order[:enough])):
            if enough == len(order) - 1:
                enough = len(order)
                break
            too_few, enough = enough, min(2 * enough, len(order) - 1)
        if enough >= len(order):
            self._give_up(len(order))
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self.keeps_promise(tuple(order[:middle])):
                enough = middle
            else:
                too_few = middle
        return tuple(order[:enough])

    def settle(self, kept: tuple[str, ...]) -> float:
        """Write the final file, and return its drop in percentage points."""
        if self.written != kept:
            self._write(kept)
        return self.drops[kept]

    def _write(self, kept: tuple[str, ...]) -> None:
        self.backend.quantize(self.source, self.target, self.images, kept)
        self.written = kept

    def _give_up(self, num_layers: int) -> None:
        best = min(self.drops, key=lambda kept: self.drops[kept])
        tried = ", ".join(str(len(kept)) for kept in self.drops)
        raise PromiseMissedError(
            f"8 bits lose at least {self.drops[best]:.2f} points of accuracy, with {len(best)} of "
            f"{num_layers} layers in higher precision; allowed: {self.max_drop:g}; tried to keep "
            f"{tried} layers; nothing is kept",
            "Allow more with --max-drop, or export in a higher precision.",
        )
