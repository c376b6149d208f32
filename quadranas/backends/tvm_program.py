"""A network compiled by TVM."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quadranas.errors import QuadranasError
from quadranas.latency.processor import CallTimes


class TvmProgram:
    """A network as a shared library, which any board of a device can load.

    Args:
        call: calls a method of a board for a library, see `TvmBackend.call`.
        emulated: why the device counts as emulated; empty for a real device.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        library: Path,
        input_shape: tuple[int, ...],
        emulated: str = "",
    ) -> None:
        self.call, self.library, self.input_shape = call, library, input_shape
        self.emulated = emulated
        self.call_s: float | None = None

    def run(self, images: Tensor) -> Tensor:
        """Shapes: as compiled, to (B, ...), float32."""
        array = images.detach().contiguous().numpy()
        return torch.from_numpy(self.call("run", self.library, array))

    def time_ms(self, repeats: int) -> list[float]:
        """Time `repeats` calls, in milliseconds, after one that is discarded.

        Raises:
            DeviceLostError: no board is left.
            QuadranasError: the device is emulated; emulated times are not latencies.
        """
        if self.emulated:
            raise QuadranasError(
                f"{self.emulated}; emulated times are not latencies",
                "Name a real board in the device's file, under reach.",
            )
        if self.call_s is None:  # to distinguish a board that hangs from a slow network
            ((self.call_s,), _) = self._time_s(1, 0.0)
        seconds, lost_ms = self._time_s(repeats, 5 * repeats * self.call_s)
        # Any of the calls may have lost the time.
        return CallTimes((1e3 * each for each in seconds), [lost_ms] * repeats)

    def _time_s(self, repeats: int, expected_s: float) -> tuple[list[float], float | None]:
        times: tuple[list[float], float | None] = self.call(
            "time_s", self.library, self.input_shape, repeats, expected_s=expected_s
        )
        return times
