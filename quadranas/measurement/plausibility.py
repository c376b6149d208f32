"""Whether latencies that another program reports can be in the unit that was said.

The reference operation is timed in every measurement, and the analytic model of the device, or
that of an Arm Cortex-A76, estimates its latency. Seconds read as milliseconds are a thousandth.
"""

from collections.abc import Sequence
from statistics import median

from torch import Tensor

from quadranas.backends.interface import Program
from quadranas.errors import QuadranasError
from quadranas.latency.analytic import op_latency_ms
from quadranas.latency.device import Device, load_device
from quadranas.measurement.probes import REFERENCE_OP

ESTIMATED_LIKE = "cpu"
"""The shipped device whose model estimates latencies for a device without a model."""


class CheckedReference:
    """The reference operation, whose reported times are checked.

    Args:
        program: the compiled operation.
        device: the device that it runs on.
    """

    def __init__(self, program: Program, device: Device) -> None:
        self.program, self.device = program, device

    def run(self, images: Tensor) -> Tensor:
        """See `Program`."""
        return self.program.run(images)

    def time_ms(self, repeats: int) -> list[float]:
        """See `Program`.

        Raises:
            QuadranasError: the times are implausible.
        """
        times = self.program.time_ms(repeats)
        check_reference(self.device, times)
        return times


def check_reference(device: Device, times_ms: Sequence[float]) -> None:
    """Check reported times of the reference operation.

    Raises:
        QuadranasError: they differ from the estimate by more than the device's factor.
    """
    assert device.command is not None
    model = device.analytic or load_device(ESTIMATED_LIKE).analytic
    assert model is not None
    like = device.name if device.analytic is not None else "an Arm Cortex-A76"
    estimate_ms = op_latency_ms(REFERENCE_OP, model, device.precision, device.batch_size)
    found_ms, factor = median(times_ms), device.command.plausible_factor
    if estimate_ms / factor <= found_ms <= estimate_ms * factor:
        return
    raise QuadranasError(
        f"device {device.name!r} reports {found_ms:.3g} ms for a convolution that takes "
        f"{estimate_ms:.3g} ms by the analytic model of {like}: more than {factor:g} times "
        f"{'longer' if found_ms > estimate_ms else 'shorter'}; the times are probably not in the "
        "unit that was said",
        "Correct the unit; if it is right, set command.plausible_factor or the section "
        "'analytic' in the device's file.",
    )
