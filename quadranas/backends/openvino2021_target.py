"""What a device must say for OpenVINO 2021.4 to drive it, and what the release is told for it."""

from dataclasses import dataclass
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.latency.device import Device

RELEASE = "2021.4"
HOW_TO_INSTALL = (
    "Make an environment for it with a Python 3.6 to 3.9, such as: python3.8 -m venv myriad && "
    "myriad/bin/pip install openvino==2021.4.2\n"
    "Name it with --worker-python myriad/bin/python, or in the device's YAML as "
    "reach: {worker_python: /path/to/myriad/bin/python}"
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an OpenVINO device takes.

    Args:
        precision: the one it computes in.
        config: decides its speed, so it is part of the provenance.
        max_loaded: networks that are kept on the device at once.
        recovery_s: how long it needs to be found again after its process was killed.
    """

    precision: str
    config: dict[str, str]
    max_loaded: int
    recovery_s: float = 0


TARGETS = {
    # The plugin converts float32 networks. By default it divides the chip among several calls at
    # once; one stream gives all of it to the one that is timed. A stick whose process was killed
    # is restarted by its watchdog.
    "MYRIAD": Target(
        precision="fp16", config={"MYRIAD_THROUGHPUT_STREAMS": "1"}, max_loaded=1, recovery_s=15
    ),
    # Where the CPU has bfloat16, this release computes in it unless it is told not to. It would
    # also pick the cores; our own affinity is to decide.
    "CPU": Target(
        precision="fp32", config={"CPU_BIND_THREAD": "NO", "ENFORCE_BF16": "NO"}, max_loaded=64
    ),
}


def find_target(device: Device) -> tuple[str, Target]:
    """The OpenVINO device, such as `MYRIAD` or `MYRIAD.1.2-ma2480`, and what it takes.

    Raises:
        QuadranasError: it is another one, or another precision is wanted than it computes in.
    """
    name = "MYRIAD" if device.target is None else device.target
    target = TARGETS.get(name.partition(".")[0]) if isinstance(name, str) else None
    if not isinstance(name, str) or target is None:
        raise QuadranasError(
            f"device {device.name!r} has the target {name!r}; with a worker_python, accepted are "
            "the OpenVINO devices MYRIAD, one of several sticks such as MYRIAD.1.2-ma2480, and CPU"
        )
    if device.precision != target.precision:
        raise QuadranasError(
            f"device {device.name!r} wants {device.precision}, but {name} computes in "
            f"{target.precision}",
            f"Write precision: {target.precision} in its YAML.",
        )
    return name, target


def find_python(device: Device) -> str:
    """The interpreter of the worker.

    Raises:
        QuadranasError: the device names none.
    """
    if device.reach.worker_python is None:
        raise QuadranasError(
            f"device {device.name!r} names no worker_python to run OpenVINO {RELEASE}",
            HOW_TO_INSTALL,
        )
    return str(Path(device.reach.worker_python).expanduser())
