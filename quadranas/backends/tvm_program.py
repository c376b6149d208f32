"""What the TVM backend compiles."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quadranas.errors import QuadranasError

if TYPE_CHECKING:
    from quadranas.backends.tvm import TvmBackend


class TvmProgram:
    """A network as a shared library, which any board of the backend can load."""

    def __init__(self, backend: "TvmBackend", library: Path, input_shape: tuple[int, ...]) -> None:
        self.backend, self.library, self.input_shape = backend, library, input_shape
        self.call_s: float | None = None

    def run(self, images: Tensor) -> Tensor:
        """Shapes: as compiled, to (B, ...), float32."""
        array = images.detach().contiguous().numpy()
        return torch.from_numpy(self.backend.call("run", self.library, array))

    def time_ms(self, repeats: int) -> list[float]:
        """Milliseconds of each of so many calls, after one that is discarded.

        Raises:
            DeviceLostError: no board is left.
            QuadranasError: the device is emulated, so its times are no latencies.
        """
        if self.backend.emulator:
            raise QuadranasError(
                f"device {self.backend.device.name} is emulated ({self.backend.emulator}): "
                "times under emulation are no latencies",
                "Name a real board in the device's file, under reach.",
            )
        if self.call_s is None:  # so that a hang can be told from a slow network
            (self.call_s,) = self._time_s(1, 0.0)
        return [1e3 * seconds for seconds in self._time_s(repeats, 5 * repeats * self.call_s)]

    def _time_s(self, repeats: int, expected_s: float) -> list[float]:
        seconds: list[float] = self.backend.call(
            "time_s", self.library, self.input_shape, repeats, expected_s=expected_s
        )
        return seconds
