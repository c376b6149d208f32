"""The rows of Table III, and its columns: latencies measured here, and latencies by model."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quadranas.backends.interface import FileBackend
from quadranas.commands.derive import derive
from quadranas.commands.predict import predict
from quadranas.deployment.bundle import open_bundle
from quadranas.deployment.latency import measured
from quadranas.files import shipped
from quadranas.latency.device import Device, load_device
from quadranas.latency.runtimes import file_formats
from quadranas.measurement.bench import open_device
from quadranas.reporter import Reporter
from quadranas.space.architecture import Architecture, load_architecture
from quadranas.space.space_file import load_space

HERE = Path(__file__).parent
BUDGETS_MS = {"cpu": 40.0, "vpu": 30.0, "gpu": 3.0}


def derive_all(run: Path, reporter: Reporter) -> None:
    """Decode one trained supernet for the three devices, and keep the architectures."""
    for device, budget_ms in BUDGETS_MS.items():
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "derived"
            budget = f"{budget_ms}ms"
            derive(run, device=device, budget=budget, output=output, reporter=reporter)
            found = load_architecture(output / "architecture.json")
        named = found.model_copy(update={"name": f"QuadraNet_{device.upper()}"})
        named.save(HERE / f"quadranet-{device}.json")


def networks(smoke: bool) -> list[Architecture]:
    """The rows: what was derived here, and the published ProxylessNAS networks."""
    if smoke:
        space = load_space("toy")
        return [space.extreme(lambda spec: spec.kernel_size, largest=large) for large in (0, 1)]
    published = sorted((shipped("search_spaces") / "mbconv-mobile").glob("*.json"))
    return [
        load_architecture(path) for path in (*sorted(HERE.glob("quadranet-*.json")), *published)
    ]


def time_all(bundles: Mapping[str, Path], file_format: str, reporter: Reporter) -> dict[str, Any]:
    """The files of one format, side by side in the same shuffled rounds."""
    device = load_device("host").configured(runtime=file_formats()[file_format])
    with open_device(device) as backend:
        assert isinstance(backend, FileBackend)
        programs = {}
        for name, folder in bundles.items():
            manifest = open_bundle(folder).manifest
            shape = (1, *manifest.input.shape[1:])
            programs[name] = backend.load(folder / manifest.artefact, shape)
        notes = measured(backend, device, programs, reporter)
    source = next(iter(notes.values())).source
    return {"source": source, "ms": {name: note.ms for name, note in notes.items()}}


def predict_all(files: Mapping[str, Path], device: Device) -> dict[str, Any]:
    """The same files, priced operator by operator by a device's model."""
    found = {name: predict(path, device=device) for name, path in files.items()}
    assert not any(result.unpriced for result in found.values())
    one = next(iter(found.values()))
    source = (
        f"analytic ({device.title}, {one.runtime}, {one.precision}; expected error "
        f"{one.expected_error})"
    )
    return {"source": source, "ms": {name: result.latency_ms for name, result in found.items()}}
