"""Fit analytic device models to published latencies, and test them on held-out networks.

The parameters of `quadranas.latency.analytic`'s formula are fitted to the latencies of whole
networks by least squares of the logarithms, so that every network counts by its relative error.
"""

import argparse
import csv
import json
import logging
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.stats import kendalltau

from experiments.published_latencies.further_networks import NAS_BENCH_201, build
from quadranas.files import source_commit
from quadranas.latency.analytic import primitive_ms
from quadranas.latency.device import AnalyticModel, ModelNumbers, load_device
from quadranas.prediction.fusion import fuse
from quadranas.prediction.graph import read_graph
from quadranas.space.cost import Primitive
from quadranas.validation import Frozen

HERE = Path(__file__).parent


class Setting(Frozen):
    """How the model of a device is fitted.

    Args:
        precision: precision of weights and activations.
        peak: multiply-accumulates that the hardware can do, in 10^9 per second; the fitted
            throughputs of 1 x 1 and depthwise convolutions are no larger. Those of other
            convolutions can be, by algorithms that save products.
        bandwidth_limit: bandwidth of its memory by the datasheet, in GB/s; the fitted one is no
            larger, or tensors would be too cheap.
        start: where the search begins: throughputs of convolutions, of 1 x 1 and of depthwise ones
            in GMAC/s, bandwidth in GB/s, overhead in microseconds, and saturation in channels.
    """

    precision: str
    peak: float
    bandwidth_limit: float
    start: tuple[float, float, float, float, float, float]


SETTINGS = {
    "cpu": Setting(
        precision="fp32", peak=19.4, bandwidth_limit=34.1, start=(10, 10, 3, 10, 15, 10)
    ),
    "adreno640": Setting(
        precision="fp16", peak=950, bandwidth_limit=34.1, start=(80, 60, 30, 15, 60, 10)
    ),
    "adreno630": Setting(
        precision="fp16", peak=730, bandwidth_limit=29.9, start=(80, 60, 30, 15, 60, 10)
    ),
    "pi4-ncnn": Setting(
        precision="fp32", peak=24, bandwidth_limit=12.8, start=(15, 12, 4, 4, 50, 5)
    ),
    "pi4-tflite": Setting(
        precision="fp32", peak=6, bandwidth_limit=12.8, start=(4, 4, 1, 3, 30, 5)
    ),
    "xavier-ncnn": Setting(
        precision="fp16", peak=5500, bandwidth_limit=136.5, start=(1000, 500, 100, 60, 50, 10)
    ),
}
"""The fitted devices. `cpu` is a test of the method: its shipped model was fitted elsewhere."""
FAMILIES = {
    "inverted bottlenecks": ("MobileNetV2", "MobileNetV3", "MnasNet", "Proxyless", "Efficient"),
    "MobileNetV1": ("MobileNetV1",),
    "residual": ("ResNet", "WideResNet"),
    "inception": ("GoogLeNet", "Inception"),
    "plain": ("VGG", "AlexNet"),
    "dense": ("DenseNet",),
    "squeeze": ("SqueezeNet",),
    "shuffle": ("ShuffleNet",),
}
PARAMETERS = ("conv", "pointwise", "depthwise", "bandwidth", "overhead", "saturation")
LEAST, MOST = (0.01, 0.01, 0.01, 0.5, 0.1, 0.1), (1e5, 1e5, 1e5, 1e4, 1e4, 64)
"""Limits of the parameters, in the same units and order."""
NO_DEPTHWISE = ("pi4-tflite",)
"""Devices whose networks have no depthwise convolution. Its throughput is that of 1 x 1
convolutions times the ratio of the two on the Cortex-A76 under TFLite 2.1."""
WEAK_PRIOR = 0.1
"""Weight of the distance from the start, for parameters that the networks do not determine."""

Launches = Mapping[Primitive, int]


def read_published(path: Path = HERE / "published.csv") -> dict[str, dict[str, float]]:
    """Latencies in milliseconds by device and network."""
    published: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            published.setdefault(row["device"], {})[row["network"]] = float(row["latency_ms"])
    return published


@cache
def launches_of(name: str) -> Launches:
    """The kernel launches of a network, as `quadranas predict` finds them, with their counts."""
    with torch.device("meta"):  # random weights would take longer than everything else
        network, size = build(name)
    network.to_empty(device="cpu")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own deprecations (torch 2.13)
        path = Path(folder) / "network.onnx"
        images = (torch.zeros(1, 3, size, size),)
        torch.onnx.export(network, images, path, dynamo=False, opset_version=18, verbose=False)
        launches, unpriced = fuse(read_graph(path))
    assert not unpriced, name
    return Counter(launch.primitive for launch in launches)


def numbers_of(device: str, logarithms: Sequence[float]) -> ModelNumbers:
    """The numbers of a device file from the logarithms of the fitted parameters.

    Linear layers have the throughput of 1 x 1 convolutions, as in the other shipped models.
    """
    values = dict(zip(PARAMETERS, (float(f"{math.exp(v):.6g}") for v in logarithms), strict=True))
    if device in NO_DEPTHWISE:
        values["depthwise"] = values["pointwise"] * depthwise_ratio()
    rates = {kind: values[kind] for kind in ("conv", "pointwise", "depthwise")}
    return ModelNumbers.model_validate(
        {
            "gmacs_per_s": rates | {"linear": values["pointwise"]},
            "bandwidth_gb_per_s": values["bandwidth"],
            "overhead_us": values["overhead"],
            "saturation": values["saturation"],
        }
    )


@cache
def depthwise_ratio() -> float:
    """Throughput of depthwise convolutions per that of 1 x 1 convolutions on the shipped `cpu`."""
    model = load_device("cpu").analytic
    assert model is not None
    return model.gmacs_per_s.depthwise / model.gmacs_per_s.pointwise


def predicted_ms(name: str, numbers: ModelNumbers, precision: str) -> float:
    """The latency of a network on a device with these numbers."""
    model = AnalyticModel(**numbers.model_dump(), runtime="", fitted_to="", expected_error="")
    launches = launches_of(name).items()
    return math.fsum(count * primitive_ms(p, model, precision) for p, count in launches)


def fit(device: str, published: Mapping[str, float], start: Sequence[float]) -> list[float]:
    """Logarithms of the parameters that agree best with the published latencies."""

    def residuals(logarithms: Any) -> Any:
        numbers = numbers_of(device, logarithms)
        errors = [
            math.log(predicted_ms(name, numbers, SETTINGS[device].precision) / ms)
            for name, ms in published.items()
        ]
        return np.array([*errors, *(WEAK_PRIOR * (logarithms - first))])

    first = np.log(SETTINGS[device].start)
    setting = SETTINGS[device]
    most = np.log([MOST[0], setting.peak, setting.peak, setting.bandwidth_limit, *MOST[4:]])
    bounds = (np.log(LEAST), most)
    inside = np.clip(start, bounds[0] + 1e-3, most - 1e-3)
    # Steps of 1 %: a smaller one is lost in the rounding of the numbers
    found = least_squares(residuals, inside, bounds=bounds, diff_step=1e-2, max_nfev=60)
    return [float(value) for value in found.x]


def family_of(name: str) -> str:
    """The family of a network; in NAS-Bench-201 by the number of 3 x 3 convolutions."""
    if name.startswith(NAS_BENCH_201):
        return NAS_BENCH_201 + str(name.removeprefix(NAS_BENCH_201).count("4"))
    return next(f for f, prefixes in FAMILIES.items() if name.startswith(prefixes))


def held_out(
    device: str,
    published: Mapping[str, float],
    groups: Collection[Collection[str]],
    start: Sequence[float],
) -> dict[str, float]:
    """Predictions of the networks of every group by a model that was fitted to the others."""
    predictions = {}
    for group in groups:
        rest = {name: ms for name, ms in published.items() if name not in group}
        numbers = numbers_of(device, fit(device, rest, start))
        for name in group:
            predictions[name] = predicted_ms(name, numbers, SETTINGS[device].precision)
    return predictions


def mape(predictions: Mapping[str, float], published: Mapping[str, float]) -> float:
    """Mean absolute error in percent."""
    errors = [abs(predictions[name] / published[name] - 1) for name in predictions]
    return round(100 * sum(errors) / len(errors), 1)


def tau(predictions: Mapping[str, float], published: Mapping[str, float]) -> float:
    """Kendall's rank correlation."""
    names = list(predictions)
    pair = ([predictions[n] for n in names], [published[n] for n in names])
    return round(float(kendalltau(*pair).statistic), 2)


def evaluate(device: str, published: Mapping[str, float]) -> dict[str, Any]:
    """The model of a device with its errors, and its predictions."""
    start = fit(device, published, [math.log(value) for value in SETTINGS[device].start])
    numbers = rounded(numbers_of(device, start))
    fitted = {name: predicted_ms(name, numbers, SETTINGS[device].precision) for name in published}
    singly = held_out(device, published, [[name] for name in published], start)
    families: dict[str, list[str]] = {}
    for name in published:
        families.setdefault(family_of(name), []).append(name)
    by_family = held_out(device, published, families.values(), start)
    networks = {
        name: {
            "published_ms": ms,
            "fitted_ms": round(fitted[name], 2),
            "held_out_ms": round(singly[name], 2),
            "family_held_out_ms": round(by_family[name], 2),
        }
        for name, ms in published.items()
    }
    return {
        "model": numbers.model_dump(exclude_defaults=True),
        "num_networks": len(published),
        "num_families": len(families),
        "fit_mape": mape(fitted, published),
        "held_out_mape": mape(singly, published),
        "held_out_tau": tau(singly, published),
        "family_mape": mape(by_family, published),
        "family_tau": tau(by_family, published),
        "networks": networks,
    }


def rounded(numbers: ModelNumbers) -> ModelNumbers:
    """Three significant digits, as in the device files."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(inner) for key, inner in value.items()}
        return float(f"{value:.3g}") if isinstance(value, float) else value

    return ModelNumbers.model_validate(short(numbers.model_dump()))


def main() -> None:
    """Fit all devices, and write models.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one small fit, nothing written")
    args = parser.parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    published = read_published()
    if args.smoke:
        few = ("SqueezeNet 1.1", "MobileNetV2", "ShuffleNetV2")
        published = {"pi4-ncnn": {name: published["pi4-ncnn"][name] for name in few}}
    devices = {}
    for device, latencies in published.items():
        devices[device] = evaluate(device, latencies)
        shown = {key: value for key, value in devices[device].items() if key != "networks"}
        print(json.dumps({"device": device} | shown))
    results = {
        "devices": devices,
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    if not args.smoke:
        text = json.dumps(results, indent=2) + "\n"
        (HERE / "models.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
