"""The settings of a device for OpenVINO 2021.4, and the configuration of the plugin."""

from dataclasses import dataclass
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.latency.device import Device

RELEASE = "2021.4"
HOW_TO_INSTALL = (
    "Make an environment with Python 3.6 to 3.9, such as: python3.8 -m venv myriad && "
    "myriad/bin/pip install openvino==2021.4.2\n"
    "Name it with --worker-python myriad/bin/python, or in the device's YAML as "
    "reach: {worker_python: /path/to/myriad/bin/python}"
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Settings of an OpenVINO device.

    Args:
        precision: precision that it computes in.
        config: settings of the plugin; they affect the speed and are part of the provenance.
        max_loaded: number of networks kept on the device at once.
        recovery_s: time until the device is found again after its process was killed.
    """

    precision: str
    config: dict[str, str]
    max_loaded: int
    recovery_s: float = 0


TARGETS = {
    # The plugin converts float32 networks. By default it divides the chip among several calls; one
    # stream gives all of it to the call that is timed. Its watchdog restarts a stick whose process
    # was killed.
    "MYRIAD": Target(
        precision="fp16", config={"MYRIAD_THROUGHPUT_STREAMS": "1"}, max_loaded=1, recovery_s=15
    ),
    # By default this release computes in bfloat16 if the CPU has it, and chooses the cores; the
    # affinity of the process is to determine them instead.
    "CPU": Target(
        precision="fp32", config={"CPU_BIND_THREAD": "NO", "ENFORCE_BF16": "NO"}, max_loaded=64
    ),
}


def find_target(device: Device) -> tuple[str, Target]:
    """The OpenVINO device, such as `MYRIAD` or `MYRIAD.1.2-ma2480`, and its settings.

    Raises:
        QuadranasError: the target or the precision is not supported.
    """
    name = "MYRIAD" if device.target is None else device.target
    target = TARGETS.get(name.partition(".")[0]) if isinstance(name, str) else None
    if not isinstance(name, str) or target is None:
        raise QuadranasError(
            f"device {device.name!r} has the target {name!r}; for the runtime openvino2021, "
            "accepted are MYRIAD, one of several sticks such as MYRIAD.1.2-ma2480, and CPU"
        )
    if device.precision != target.precision:
        raise QuadranasError(
            f"device {device.name!r} has the precision {device.precision}, but {name} computes in "
            f"{target.precision}",
            f"Write precision: {target.precision} in its YAML.",
        )
    return name, target


def find_python(device: Device) -> str:
    """The interpreter of the worker.

    Raises:
        QuadranasError: the device has none.
    """
    if device.reach.worker_python is None:
        raise QuadranasError(
            f"device {device.name!r} has no worker_python to run OpenVINO {RELEASE}",
            HOW_TO_INSTALL,
        )
    return str(Path(device.reach.worker_python).expanduser())
