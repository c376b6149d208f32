"""devices and spaces: what can be searched, for which latency."""

from importlib.util import find_spec
from typing import Any

from quadranas.latency.device import load_device, shipped_devices
from quadranas.latency.table import build_command
from quadranas.latency.table_files import find_table, locate_table, table_paths
from quadranas.space.cost import count_macs
from quadranas.space.space_file import load_space, space_files
from quadranas.strategies.limits import reachable_ms

NEEDED = {name: name for name in ("onnxruntime", "openvino", "tvm", "torch", "executorch")}
"""The package of each runtime, all but `torch` an extra; a GPU is not found by its package."""


def installed_runtimes() -> list[str]:
    """The runtimes that this machine can measure with."""
    return [name for name, package in NEEDED.items() if find_spec(package) is not None]


def survey_devices(names: list[str]) -> list[dict[str, Any]]:
    """Each device in words, and the spaces it has a table for.

    Args:
        names: shipped devices or YAML files; all shipped ones if empty.
    """
    devices = []
    for name in names or shipped_devices():
        device = load_device(name)
        tables = {}
        for space in space_files():
            path = next((p for p in table_paths(space, device.name) if p.is_file()), None)
            if path is not None:
                tables[space] = str(path)
        devices.append(
            {
                "name": device.name,
                "title": device.title,
                "runtime": device.runtime,
                "precision": device.precision,
                "threads": device.threads,
                "analytic": device.analytic is not None,
                "expected_error": device.analytic.expected_error if device.analytic else None,
                "tables": tables,
            }
        )
    return devices


def survey_spaces(names: list[str], device_names: list[str]) -> list[dict[str, Any]]:
    """Each space's size, range of MACs, and range of predicted latency per device.

    Args:
        names: shipped spaces or YAML files; all shipped ones if empty.
        device_names: the same for devices. Of shipped devices, those without a table are left out;
            a device that was named must have one.

    Raises:
        QuadranasError: unknown names, or no table of a device that was named.
    """
    spaces = []
    for name in names or space_files():
        space = load_space(name)
        smallest, largest = (space.extreme(count_macs, largest=big) for big in (False, True))
        devices = {}
        for device_name in device_names or shipped_devices():
            device = load_device(device_name).name
            if not device_names and not any(p.is_file() for p in table_paths(space.name, device)):
                continue
            table = find_table(space, device, command=build_command(name, device_name))
            low, high = reachable_ms(space, table)
            devices[device] = {
                "min_ms": low,
                "max_ms": high,
                "method": table.header.method,
                "table": str(locate_table(space.name, device)),
                "summary": table.header.summary(),
            }
        spaces.append(
            {
                "name": space.name,
                "resolution": space.resolution,
                "architectures": space.num_architectures,
                "min_macs": count_macs(smallest),
                "max_macs": count_macs(largest),
                "devices": devices,
            }
        )
    return spaces
