"""Devices: what runs a network, described in YAML."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from quadranas.architecture import Frozen
from quadranas.errors import unknown
from quadranas.files import read_yaml, validate

DEVICES = Path(__file__).parent / "devices"

Rate = Annotated[float, Field(ge=1e-9, le=1e12)]
"""So wide that every device fits, so narrow that no latency becomes zero or infinite."""


class Throughputs(Frozen):
    """Multiply-accumulates a device sustains, in 10^9 per second, by kind of primitive."""

    conv: Rate
    pointwise: Rate
    depthwise: Rate
    linear: Rate


class AnalyticModel(Frozen):
    """A roofline with saturation and a cost per kernel launch; see `analytic.py`.

    Args:
        fitted_to: where the numbers come from.
        expected_error: how far predictions were from measurements, and of what.
        saturation_channels: which channels limit the throughput, `in` or `out`.
        saturation: number of those channels at which half of the throughput is reached.
        overhead_us: of every kernel launch.
        linear_weights_gb_per_s: bandwidth of a fully connected layer's weights, if it differs.
    """

    fitted_to: str
    expected_error: str
    gmacs_per_s: Throughputs
    bandwidth_gb_per_s: Rate
    linear_weights_gb_per_s: Rate | None = None
    overhead_us: float = Field(ge=0, le=1e9)
    saturation_channels: str = Field(default="out", pattern="^(in|out)$")
    saturation: float = Field(default=0.0, ge=0, le=1e9)


class Device(Frozen):
    """A device and how its latency is known.

    Args:
        name: identifies its tables: `latency_tables/<space>/<name>.json`.
        title: the hardware in words.
        precision: of weights and activations; decides the bytes per element.
        threads: on the device; none where the notion does not apply.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str
    runtime: str
    precision: str = Field(pattern="^(fp32|fp16|int8)$")
    threads: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=1, ge=1, le=1)
    analytic: AnalyticModel | None = None


def shipped_devices() -> dict[str, Path]:
    """The devices that come with the package, by name."""
    return {path.stem: path for path in sorted(DEVICES.glob("*.yaml"))}


def load_device(name_or_path: str) -> Device:
    """A shipped device by name, or one's own from a YAML file.

    Raises:
        QuadranasError: unknown name (nearest suggested), or a fault in the file.
    """
    devices = shipped_devices()
    path = Path(name_or_path)
    if name_or_path in devices:
        path = devices[name_or_path]
    elif path.suffix not in (".yaml", ".yml"):
        raise unknown("device", name_or_path, devices, "Name one of these, or a .yaml file.")
    return validate(Device, read_yaml(path, "device"), path)
