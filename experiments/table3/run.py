"""Table III on this machine and on three device models; see README.md."""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from quadranas.architecture import Architecture, load_architecture
from quadranas.backends.interface import FileBackend
from quadranas.bundle import FORMATS, open_bundle
from quadranas.cost import count_macs, count_params
from quadranas.derive import derive
from quadranas.export import export
from quadranas.export_latency import measured
from quadranas.export_target import ExportOptions
from quadranas.files import shipped, source_commit
from quadranas.latency.contract import Contract
from quadranas.latency.device import Device, load_device
from quadranas.latency.host import cpu_name
from quadranas.measurement import open_device
from quadranas.predict import predict
from quadranas.reporter import Reporter
from quadranas.space import load_space
from quadranas.trained import Subject

HERE = Path(__file__).parent
BUDGETS_MS = {"cpu": 40.0, "vpu": 30.0, "gpu": 3.0}
MODELS = ("cpu", "vpu", "gpu")
FILE_FORMATS = ("onnx", "openvino")


def derive_all(run: Path, reporter: Reporter) -> None:
    """Decode one trained supernet for the three devices, and keep the architectures."""
    for device, budget_ms in BUDGETS_MS.items():
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "derived"
            contract = Contract(budget_ms=budget_ms)
            derive(run, load_device(device), contract, output, reporter)
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
    device = load_device("host").configured(runtime=FORMATS[file_format].runtime)
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
    found = {name: predict(path, device) for name, path in files.items()}
    assert not any(result["unpriced"] for result in found.values())
    one = next(iter(found.values()))
    source = (
        f"analytic ({device.title}, {one['runtime']}, {one['precision']}; expected error "
        f"{one['expected_error']})"
    )
    return {"source": source, "ms": {name: result["latency_ms"] for name, result in found.items()}}


def main() -> None:
    """Export every network, time the files, and put the predictions beside them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="the toy space, nothing kept")
    parser.add_argument("--derive", type=Path, help="derive the QuadraNets anew from this run")
    args = parser.parse_args()
    with Reporter() as reporter, tempfile.TemporaryDirectory() as scratch:
        if args.derive:
            derive_all(args.derive, reporter)
        rows = {architecture.name: architecture for architecture in networks(args.smoke)}
        host = {}
        for file_format in FILE_FORMATS:
            options = ExportOptions(file_format=file_format, device="host", num_images=16)
            bundles = {name: Path(scratch) / f"{name}-{file_format}" for name in rows}
            for name, architecture in rows.items():
                export(Subject(architecture), bundles[name], options, reporter)
            host[file_format] = time_all(bundles, file_format, reporter)
        files = {name: Path(scratch) / f"{name}-onnx" / "model.onnx" for name in rows}
        predicted = {model: predict_all(files, load_device(model)) for model in MODELS}
    content = {
        "networks": {
            name: {"params": count_params(a), "macs": count_macs(a), "provenance": a.provenance}
            for name, a in rows.items()
        },
        "measured": host,
        "predicted": predicted,
        "hardware": cpu_name(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": source_commit(),
    }
    print_table(content)
    if not args.smoke:
        (HERE / "results.json").write_text(json.dumps(content, indent=2) + "\n")


def print_table(content: Mapping[str, Any]) -> None:
    """One line a network, as Table III has them, and where every column comes from."""
    columns = {f"host, {key}": found for key, found in content["measured"].items()}
    columns |= content["predicted"]
    print("| network | MACs | parameters | " + " | ".join(columns) + " |")
    print("| --- | " + "--- | " * (len(columns) + 2))
    for name, facts in content["networks"].items():
        counts = f"{facts['macs'] / 1e6:.0f} M | {facts['params'] / 1e6:.2f} M"
        cells = [f"{found['ms'][name]:.3g} ms" for found in columns.values()]
        print(f"| {name} | {counts} | " + " | ".join(cells) + " |")
    for name, found in columns.items():
        print(f"{name}: {found['source']}")


if __name__ == "__main__":
    main()
