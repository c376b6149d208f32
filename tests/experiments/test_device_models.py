"""The device models that were fitted to published latencies: their networks, files and errors."""

import csv
import json
import math
from collections import Counter
from typing import Any

import pytest
import torch

from experiments.published_latencies import fit
from experiments.published_latencies.further_networks import NAS_BENCH_201, NETWORKS, build
from experiments.published_latencies.networks import NETWORKS as FORMER
from quadranas.latency.device import ModelNumbers, load_device, shipped_devices
from tests import fixtures

RESULTS: dict[str, Any] = json.loads((fit.HERE / "models.json").read_text(encoding="utf-8"))
FITTED: dict[str, Any] = RESULTS["devices"]
SHIPPED = sorted(set(FITTED) & set(shipped_devices()) - {"cpu"})

# Parameters and millions of MACs: torchvision's documentation of its models; MobileNetV3,
# MnasNet, EfficientNet and DenseNet have the same there. ProxylessNAS: its authors' weights.
WELL_KNOWN = {
    "MobileNetV3-Large": (5_483_032, 217),
    "MobileNetV3-Small": (2_542_856, 57),
    "MnasNet-B1": (4_383_312, 314),
    "ProxylessNAS-Mobile": (4_080_512, 320),
    "EfficientNet-B0": (5_288_548, 386),
    "ShuffleNetV2": (2_278_604, 145),
    "SqueezeNet 1.1": (1_235_496, 388),
    "ResNet-34": (21_797_672, 3664),
    "WideResNet-50-2": (68_883_240, 11_398),
    "DenseNet-121": (7_978_856, 2834),
    "DenseNet-161": (28_681_000, 7728),
    "Inception-v3": (23_834_568, 5713),
    "VGG-11": (132_863_336, 7609),
    "VGG-13": (133_047_848, 11_308),
    "VGG-19": (143_667_240, 19_632),
    "NAS-Bench-201 444444": (1_531_546, None),  # its largest and its smallest network
    "NAS-Bench-201 000100": (73_306, None),
}


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_the_networks_are_the_well_known_ones(name: str, count_by_torch: fixtures.Counter) -> None:
    with torch.device("meta"):
        network, size = build(name)
        params, macs = count_by_torch(network, torch.zeros(1, 3, size, size))
    assert params == WELL_KNOWN[name][0]
    assert WELL_KNOWN[name][1] in (None, round(macs / 1e6))


def test_every_network_is_known() -> None:
    assert set(NETWORKS) - set(FORMER) == {n for n in WELL_KNOWN if n in NETWORKS}
    with (fit.HERE / "published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert max(Counter((row["device"], row["network"]) for row in rows).values()) == 1
    assert {row["source"] for row in rows} == {
        *("nn-meter-tensorflow", "nn-meter-torch", "ncnn", "hw-nas-bench"),
    }
    for device, latencies in fit.read_published().items():
        kept = {name: row["published_ms"] for name, row in FITTED[device]["networks"].items()}
        assert kept == latencies


@pytest.mark.parametrize("name", FITTED)
def test_the_errors_are_those_of_the_kept_predictions(name: str) -> None:
    found = FITTED[name]
    published = {n: row["published_ms"] for n, row in found["networks"].items()}
    for key, error in (("fitted", "fit"), ("held_out", "held_out"), ("family_held_out", "family")):
        predicted = {n: row[f"{key}_ms"] for n, row in found["networks"].items()}
        assert fit.mape(predicted, published) == pytest.approx(found[f"{error}_mape"], abs=0.11)
        if error != "fit":
            tau = fit.tau(predicted, published)
            assert tau == pytest.approx(found[f"{error}_tau"], abs=0.02)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_the_fitted_one_and_states_its_held_out_error(name: str) -> None:
    model, found = load_device(name).analytic, FITTED[name]
    assert model is not None
    assert model.numbers.model_dump(exclude_defaults=True) == found["model"]
    assert model.expected_error.startswith(
        f"{found['held_out_mape']} % MAPE leave-one-network-out, "
        f"{found['family_mape']} % leave-one-family-out, "
        f"Kendall tau {found['held_out_tau']:.2f} and {found['family_tau']:.2f}"
    )
    assert f"{found['num_networks']} networks" in model.fitted_to


def test_a_model_that_does_not_rank_is_not_shipped() -> None:
    for name, found in FITTED.items():
        assert (name in shipped_devices()) == (
            min(found["held_out_tau"], found["family_tau"]) >= 0.5
        )


@pytest.mark.parametrize("name", FITTED)
def test_a_kept_prediction_is_what_the_model_says_today(name: str) -> None:
    numbers = ModelNumbers.model_validate(FITTED[name]["model"])
    networks = FITTED[name]["networks"]
    small = ("SqueezeNet 1.1", "SqueezeNet", "NAS-Bench-201 000100")
    network = next(network for network in small if network in networks)
    predicted = fit.predicted_ms(network, numbers, fit.SETTINGS[name].precision)
    assert predicted == pytest.approx(networks[network]["fitted_ms"], abs=0.006)


def test_the_method_finds_the_shipped_model_of_the_cpu_again() -> None:
    """Fitted elsewhere to 20 of these networks: the throughputs agree within 5 %."""
    model = load_device("cpu").analytic
    assert model is not None
    for kind, rate in FITTED["cpu"]["model"]["gmacs_per_s"].items():
        assert rate == pytest.approx(getattr(model.gmacs_per_s, kind), rel=0.05)
    assert FITTED["cpu"]["held_out_mape"] < 6


def test_a_fit_predicts_what_it_was_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies that a model made are predicted by the fitted one within 2 %."""
    monkeypatch.setattr(fit, "WEAK_PRIOR", 1e-3)  # it holds numbers where they are measured badly
    device = "pi4-tflite"
    truth = fit.numbers_of(device, [math.log(number) for number in (7, 3, 1, 2, 60, 8)])
    codes = ("000100", "000300", "000400", "333333", "444444", "034410", "200014", "111111")
    names = [f"{NAS_BENCH_201}{code}" for code in codes]
    published = {name: fit.predicted_ms(name, truth, "fp32") for name in names}
    found = fit.fit(device, published, [math.log(n) for n in fit.SETTINGS[device].start])
    numbers = fit.numbers_of(device, found)
    for name, ms in published.items():
        assert fit.predicted_ms(name, numbers, "fp32") == pytest.approx(ms, rel=0.02)
    assert numbers.gmacs_per_s.conv == pytest.approx(7, rel=0.1)


@pytest.mark.parametrize("name", ["pi5-litert", "pi5-onnxruntime", "pi4-tflite"])
def test_a_derived_depthwise_throughput_has_the_ratio_of_the_cpu(name: str) -> None:
    model = load_device(name).analytic
    assert model is not None
    rates = model.gmacs_per_s
    assert rates.depthwise == pytest.approx(rates.pointwise * fit.depthwise_ratio(), rel=3e-3)
    assert "depthwise" in model.expected_error
