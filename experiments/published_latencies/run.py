"""Predicted against published latencies of well-known classifiers; see README.md."""

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS
from torch import nn

from quadranas.commands.predict import predict
from quadranas.files import source_commit

# By network: ms on the Cortex-A76 and the Myriad X, of nn-Meter's TensorFlow files and of its
# torchvision models (tests/integration_test/data/reference_result{,_onnx_based_torch}.txt there).
PUBLISHED: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "MobileNetV1": {"cpu": (67.0, None), "vpu": (18.8, None)},
    "MobileNetV2": {"cpu": (46.0, 44.0), "vpu": (22.7, 22.0)},
    "ResNet-18": {"cpu": (216.2, 216.2), "vpu": (21.9, 21.9)},
    "ResNet-50": {"cpu": (452.7, None), "vpu": (59.0, None)},
    "SqueezeNet": {"cpu": (97.7, 98.4), "vpu": (11.8, 11.1)},
    "GoogLeNet": {"cpu": (177.5, 167.6), "vpu": (17.8, 17.1)},
    "AlexNet": {"cpu": (84.8, 96.6), "vpu": (12.4, 20.8)},
    "VGG-16": {"cpu": (1634.0, 1668.5), "vpu": (None, None)},
}


def save(network: nn.Module, path: Path, *, dynamo: bool) -> Path:
    """Export with the new exporter or with the old one."""
    images = (torch.zeros(1, 3, 224, 224),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own deprecations (torch 2.13)
        torch.onnx.export(network, images, path, dynamo=dynamo, opset_version=18, verbose=False)
    return path


def compare(name: str, folder: Path) -> list[dict[str, Any]]:
    """Predictions for one network, a row per device."""
    network = NETWORKS[name]().eval()
    new = save(network, folder / f"{name}-new.onnx", dynamo=True)
    old = save(network, folder / f"{name}-old.onnx", dynamo=False)
    rows = []
    for device in ("cpu", "vpu"):
        result = predict(new, device=device)
        again = predict(old, device=device)
        predicted = result.latency_ms
        row = {"network": name, "device": device, "predicted_ms": round(predicted, 2)}
        for source, ms in zip(("tensorflow", "torchvision"), PUBLISHED[name][device], strict=True):
            row[f"{source}_ms"] = ms
            row[f"{source}_error"] = round(predicted / ms - 1, 4) if ms else None
        row["old_exporter"] = round(again.latency_ms / predicted - 1, 6)
        row["unpriced"] = [missing.model_dump() for missing in result.unpriced + again.unpriced]
        print(json.dumps(row))
        rows.append(row)
    return rows


def mape(rows: list[dict[str, Any]], device: str, source: str) -> float:
    """Mean absolute error in percent over the networks with a published figure."""
    errors = [row[f"{source}_error"] for row in rows if row["device"] == device]
    return round(100 * statistics.mean(abs(error) for error in errors if error is not None), 1)


def main() -> None:
    """Predict, compare, and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one network, nothing written")
    args = parser.parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    rows = []
    for name in ["SqueezeNet"] if args.smoke else NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(name, Path(folder))
    pairs = [
        (device, source) for device in ("cpu", "vpu") for source in ("tensorflow", "torchvision")
    ]
    results = {
        "mape": {f"{device} {source}": mape(rows, device, source) for device, source in pairs},
        "rows": rows,
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    print(json.dumps(results["mape"]))
    if not args.smoke:
        path = Path(__file__).with_name("results.json")
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
