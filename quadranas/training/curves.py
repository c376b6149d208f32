"""The curves of a run, for TensorBoard."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from quadranas.errors import QuadranasError
from quadranas.files import cannot_write
from quadranas.inspection.records import StepRecord
from quadranas.runs import layout
from quadranas.runs.records import Metrics
from quadranas.runs.run_folder import THEN_RESUME, RunFolder


class Curves:
    """A TensorBoard writer; points written after the checkpoint are removed.

    Args:
        num_metrics: number of lines in `metrics.jsonl` at the checkpoint.

    Raises:
        QuadranasError: from every method, if TensorBoard cannot write its files.
    """

    def __init__(self, folder: RunFolder, num_metrics: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / layout.TENSORBOARD
        self._hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        try:
            with self._reported():
                self.writer: Any = SummaryWriter(str(self.path), purge_step=num_metrics + 1)
        except BaseException:
            threading.excepthook = self._hook
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # An earlier error, perhaps of the same full disk, counts more than this one.
            with suppress(QuadranasError) if error else self._reported(), self._reported():
                self.writer.close()
        finally:
            self._end_threads()
            threading.excepthook = self._hook

    def add_metrics(self, metrics: Metrics, number: int) -> None:
        """Add the numbers of an epoch's metrics, one curve per phase and key."""
        with self._reported():
            for key, value in metrics.items():
                if isinstance(value, float):
                    self.writer.add_scalar(f"{metrics['phase']}/{key}", value, number)

    def add_record(self, record: StepRecord, number: int) -> None:
        """Add the distributions of an inspection as histograms."""
        with self._reported():
            write_histograms(self.writer, record, number)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except QuadranasError:
            raise
        # With TensorFlow installed, TensorBoard writes through it and raises its error classes.
        except Exception as error:
            raise cannot_write(self.path, error, THEN_RESUME) from error

    def _on_thread_error(self, details: Any) -> None:
        """Print no traceback of TensorBoard's thread: its error is raised again by the writer."""
        if not _is_writer(details.thread):
            self._hook(details)

    def _end_threads(self) -> None:
        """Wait for the writer's threads, which after an error have nothing left to write."""
        for thread in threading.enumerate():
            if _is_writer(thread):
                thread.join(timeout=1)


def _is_writer(thread: threading.Thread | None) -> bool:
    return thread is not None and type(thread).__module__.startswith("tensorboard.")


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
