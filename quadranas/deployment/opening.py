"""Opening exported files: on the device of their bundle, reached as the caller says."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from quadranas.backends.interface import FileBackend
from quadranas.deployment.bundle import Bundle
from quadranas.deployment.manifest import Manifest
from quadranas.errors import QuadranasError
from quadranas.latency.device import Device, ReachSettings
from quadranas.latency.host import usable_cores
from quadranas.latency.runtimes import REACH_SETTINGS, REACH_USAGE, RUNTIMES, Runtime, files_of
from quadranas.measurement.bench import open_device
from quadranas.runs.run_device import open_device_argument


def bundle_device(manifest: Manifest, reach: Mapping[str, str]) -> Device:
    """The device of the bundle, reached as the caller says.

    It uses at most as many threads as this machine has cores.

    Raises:
        QuadranasError: its runtime does not read the bundle's file, or `reach` does not suit it.
    """
    runtime = _runtime(manifest)
    _check_reach(manifest, runtime, reach)
    device = manifest.device.without_reach().configured(**reach)
    cores = len(usable_cores())
    if device.is_remote or device.threads is None or device.threads <= cores:
        return device
    return device.configured(threads=cores)


def reach_of(
    manifest: Manifest, device: str | Path | Device | None, reach: ReachSettings
) -> dict[str, str]:
    """How to reach the bundle's device: as its file says, and as the caller says.

    Raises:
        QuadranasError: the file describes another device.
    """
    named = {key: str(value) for key, value in reach.items() if value is not None}
    if device is None:
        return named
    loaded = open_device_argument(device)
    if loaded.name != manifest.device.name:
        raise QuadranasError(
            f"the bundle runs on device {manifest.device.name!r}, not on {loaded.name!r}",
            "Name the file of the bundle's device, or export again for the other one.",
        )
    return loaded.configured(**named).reach.given


def _runtime(manifest: Manifest) -> Runtime:
    """The runtime of the bundle's device.

    Raises:
        QuadranasError: it reads no files, or files of another format.
    """
    device = manifest.device
    if device.runtime not in RUNTIMES:
        raise QuadranasError(
            f"device {device.name!r}: its runtime is {device.runtime!r}; accepted: "
            f"{', '.join(RUNTIMES)}",
            "Export again for a device with one of these.",
        )
    runtime = RUNTIMES[device.runtime]
    if runtime.files is None or runtime.files.format != manifest.format:
        raise QuadranasError(
            f"device {device.name!r}: {device.runtime} does not read the bundle's format, "
            f"{manifest.format}",
            "Export again for another device.",
        )
    return runtime


def _check_reach(manifest: Manifest, runtime: Runtime, reach: Mapping[str, str]) -> None:
    """Refuse options that do not suit the bundle's runtime, and require those that it needs."""
    for key in reach:
        if key in REACH_SETTINGS and key not in runtime.reach:
            raise QuadranasError(
                f"--{key.replace('_', '-')} does not suit this bundle, whose file runs in "
                f"{manifest.runtime}",
                "Omit it, or export for the device that it reaches.",
            )
    is_elsewhere = runtime.needs_reach or manifest.device.is_remote
    if is_elsewhere and not reach:
        usages = [usage for key, usage in REACH_USAGE.items() if key in runtime.reach]
        raise QuadranasError(
            f"{manifest.name} runs in {manifest.runtime} on device {manifest.device.name!r}, and "
            "how to reach it must be named; a manifest never chooses what is started or contacted",
            f"Add {' or '.join(usages)}.",
        )


def refuse_native_code(bundle: Bundle) -> None:
    """Refuse a bundle whose file is machine code.

    Raises:
        QuadranasError: names the option that allows it.
    """
    if files_of(bundle.manifest.format).native:
        raise QuadranasError(
            f"{bundle.artefact} is machine code, which can do anything that you can",
            "If you exported it or trust who did, add --allow-native-code.",
        )


@contextmanager
def opened_for_files(device: Device, records: Path) -> Iterator[FileBackend]:
    """Open a device whose runtime loads files; see `open_device`."""
    with open_device(device, records) as backend:
        assert isinstance(backend, FileBackend)
        yield backend
