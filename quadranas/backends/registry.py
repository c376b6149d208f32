"""Opening a device with its runtime."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import cast

from quadranas.backends.interface import Backend
from quadranas.errors import QuadranasError
from quadranas.latency.device import Device
from quadranas.latency.runtimes import RUNTIMES


def backend_class(runtime: str) -> Callable[[Device, Path], Backend]:
    """The class of a runtime's backend; its module is imported now."""
    module, _, name = RUNTIMES[runtime].backend.partition(":")
    return cast("Callable[[Device, Path], Backend]", getattr(import_module(module), name))


def open_backend(device: Device, records: Path) -> Backend:
    """Open a device for compiling and timing, here or where its reach says.

    Args:
        records: folder for results that the runtime can reuse, such as tuning records.

    Raises:
        MissingExtraError: the runtime is not installed.
        QuadranasError: the device cannot be opened, or cannot run at its precision.
    """
    assert device.runtime in RUNTIMES, "choose the runtime first"
    if device.is_away:
        raise QuadranasError(
            f"device {device.name!r} is reached by ssh, and a run folder or a bundle never "
            "chooses what is contacted",
            "Name its own file with --device.",
        )
    if device.reach.ssh is not None:
        from quadranas.backends.ssh import SshBackend

        return SshBackend(device, records)
    return backend_class(device.runtime)(device, records)
