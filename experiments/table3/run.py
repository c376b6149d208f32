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

from latencies import derive_all, networks, predict_all, time_all

from quadranas.commands.export import export
from quadranas.files import source_commit
from quadranas.latency.device import load_device
from quadranas.latency.host import cpu_name
from quadranas.reporter import Reporter
from quadranas.runs.stored_network import StoredNetwork
from quadranas.space.cost import count_macs, count_params

HERE = Path(__file__).parent
MODELS = ("cpu", "vpu", "gpu")
FILE_FORMATS = ("onnx", "openvino")


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
            bundles = {name: Path(scratch) / f"{name}-{file_format}" for name in rows}
            for name, architecture in rows.items():
                export(
                    StoredNetwork(architecture),
                    format=file_format,
                    device="host",
                    output=bundles[name],
                    images=16,
                    untrained=True,
                    reporter=reporter,
                )
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
