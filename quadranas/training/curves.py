"""The curves of a run, for TensorBoard."""

from typing import Any

from quadranas.inspection.records import StepRecord
from quadranas.runs import layout
from quadranas.runs.records import Metrics
from quadranas.runs.run_folder import RunFolder


def open_curves(folder: RunFolder, num_metrics: int) -> Any:
    """A TensorBoard writer; points written after the checkpoint are removed."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / layout.TENSORBOARD), purge_step=num_metrics + 1)


def write_curves(writer: Any, metrics: Metrics, number: int) -> None:
    """Add the numbers of an epoch's metrics, one curve per phase and key."""
    for key, value in metrics.items():
        if isinstance(value, float):
            writer.add_scalar(f"{metrics['phase']}/{key}", value, number)


def write_histograms(writer: Any, record: StepRecord, number: int) -> None:
    """Add the distributions of an inspection as histograms."""
    for name, layer in record.layers.items():
        found = {f"weights/{part}": d for part, d in layer.weights.items()}
        found |= {f"gradients/{part}": d for part, d in layer.gradients.items()}
        if layer.activation is not None:
            found["activations"] = layer.activation
        for what, d in found.items():
            finite = sum(d.counts)
            if finite:
                width = (d.high - d.low) / len(d.counts)
                writer.add_histogram_raw(
                    f"{name}/{what}",
                    min=d.low,
                    max=d.high,
                    num=finite,
                    sum=d.mean * finite,
                    sum_squares=d.mean_square * finite,
                    bucket_limits=[d.low + width * (bin + 1) for bin in range(len(d.counts))],
                    bucket_counts=d.counts,
                    global_step=number,
                )
