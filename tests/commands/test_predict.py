"""predict: what a file costs, next to the tables and to published latencies."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from experiments.published_latencies.networks import NETWORKS
from quadranas.backends.interface import Conversion
from quadranas.backends.onnx_file import to_onnx
from quadranas.commands.predict import PredictResult, predict
from quadranas.errors import QuadranasError
from quadranas.latency.analytic import op_latency_ms
from quadranas.latency.device import Device, load_device
from quadranas.network.skeleton import build_subnet
from quadranas.space.architecture import Architecture
from quadranas.space.cost import count_macs
from quadranas.space.space_file import load_space
from tests.command_line import call
from tests.fixtures import Counter
from tests.onnx_files import Weights, model, write
from tests.typed_results import parsed

RESULTS = Path(__file__).parents[2] / "experiments/published_latencies/results.json"

# Parameters and millions of MACs at 224 pixels: torchvision's documentation of its models (its
# GFLOPS are MACs), MobileNetV1 from arXiv:1704.04861, Table 4 (4.2 M, 569 M).
WELL_KNOWN = {
    "MobileNetV1": (4_231_976, 569),
    "MobileNetV2": (3_504_872, 301),
    "ResNet-18": (11_689_512, 1814),
    "ResNet-50": (25_557_032, 4089),
    "SqueezeNet": (1_248_424, 819),
    "GoogLeNet": (6_624_904, 1498),
    "AlexNet": (61_100_840, 714),
    "VGG-16": (138_357_544, 15_470),
}


def save(network: nn.Module, path: Path, *, size: int = 224, **options: Any) -> Path:
    """Export with one of PyTorch's exporters."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.zeros(1, 3, size, size),), path, verbose=False, **options
        )
    return path


def table_ms(architecture: Architecture, device: Device) -> float:
    """What an analytic table adds up to."""
    assert device.analytic is not None
    return sum(op_latency_ms(op, device.analytic, device.precision) for op in architecture.ops())


def small_mbconv() -> Architecture:
    """The first block of every stage of ProxylessNAS's space, narrow."""
    space = load_space("mbconv-mobile", widths=(4, 4, 8, 8, 8, 8, 8, 8, 16))
    choices = {b.name: None if b.optional else (0,) * len(b.slots) for b in space.blocks}
    return space.architecture(choices).adapted(resolution=64, num_classes=5)


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        *(("toy", True), ("mbconv", False)),
        *(
            pytest.param(name, largest, marks=pytest.mark.slow)
            for name in ("mbconv-mobile", "quadranet-mobile")
            for largest in (False, True)
        ),
    ],
)
def test_an_exported_network_costs_what_the_table_says(
    tmp_path: Path, name: str, largest: bool
) -> None:
    """A BatchNorm leaves a bias in the file that the tables do not count: 1e-3 and not 1e-9."""
    if name == "mbconv":
        architecture = small_mbconv()
    else:
        architecture = load_space(name).extreme(count_macs, largest=largest)
    shape = (1, 3, architecture.resolution, architecture.resolution)
    conversion = Conversion(input_shape=shape, dynamic_batch=name != "mbconv")
    content = to_onnx(build_subnet(architecture), conversion)
    (tmp_path / "net.onnx").write_bytes(content)
    for device in map(load_device, ("cpu", "vpu", "gpu")):
        result = predict(tmp_path / "net.onnx", device=device)
        tolerance = 1e-3 if name.startswith("mbconv") else 1e-9
        assert result.latency_ms == pytest.approx(table_ms(architecture, device), rel=tolerance)
        assert result.macs == count_macs(architecture)
        assert result.unpriced == ()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_compared_networks_are_the_well_known_ones(name: str, count_by_torch: Counter) -> None:
    with torch.device("meta"):
        network = NETWORKS[name]().eval()
        params, macs = count_by_torch(network, torch.zeros(1, 3, 224, 224))
    assert params == WELL_KNOWN[name][0]
    assert macs / 1e6 == pytest.approx(WELL_KNOWN[name][1], abs=0.6)


@pytest.mark.parametrize(
    "name",
    [
        *("MobileNetV1", "MobileNetV2", "ResNet-18", "SqueezeNet", "GoogLeNet"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("ResNet-50", "AlexNet", "VGG-16")),
    ],
)
def test_the_experiment_has_kept_what_is_predicted(tmp_path: Path, name: str) -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    path = save(NETWORKS[name](), tmp_path / "net.onnx", dynamo=False, opset_version=18)
    for row in kept["rows"]:
        if row["network"] == name:
            result = predict(path, device=load_device(row["device"]))
            assert result.latency_ms == pytest.approx(row["predicted_ms"], rel=1e-3)
            assert result.macs / 1e6 == pytest.approx(WELL_KNOWN[name][1], abs=0.6)


def test_predictions_are_near_published_latencies() -> None:
    """10 % on the Cortex-A76, 20 % on the Myriad, on average over the networks."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert {row["network"] for row in kept["rows"]} == set(NETWORKS)
    for device, accepted in (("cpu", 0.10), ("vpu", 0.20)):
        rows = [row for row in kept["rows"] if row["device"] == device]
        for source in ("tensorflow", "torchvision"):
            pairs = [(r["predicted_ms"], r[f"{source}_ms"]) for r in rows if r[f"{source}_ms"]]
            errors = [abs(predicted / published - 1) for predicted, published in pairs]
            assert sum(errors) / len(errors) <= accepted


class Gated(nn.Module):
    """Squeeze and excitation, after a convolution with hard swish."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.squeeze, self.excite = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.norm(self.conv(x)))
        squeezed = nn.functional.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * nn.functional.hardsigmoid(self.excite(squeezed))


class Tokens(nn.Module):
    """LayerNorm, linear layers with GELU and SiLU, softmax."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.expand, self.project = nn.Linear(channels, 32), nn.Linear(32, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        hidden = nn.functional.gelu(self.expand(self.norm(tokens)))
        tokens = tokens + nn.functional.silu(self.project(hidden))
        return tokens.softmax(-1).mean(1)


def test_every_exporter_leads_to_the_same_prediction(tmp_path: Path) -> None:
    """The old one spells out hard swish and LayerNorm where the operator set lacks them."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        Gated(16),
        Tokens(16),
        nn.Linear(16, 10),
    )
    files = [save(network, tmp_path / "new.onnx", size=32, dynamo=True, opset_version=18)]
    for opset in (13, 14, 18):
        path = tmp_path / f"old{opset}.onnx"
        files.append(save(network, path, size=32, dynamo=False, opset_version=opset))
    for device in map(load_device, ("cpu", "vpu", "gpu")):
        first, *others = [predict(file, device=device) for file in files]
        for other in others:
            assert other.latency_ms == pytest.approx(first.latency_ms, rel=1e-3)
            assert len(other.operators) == len(first.operators)
            assert other.unpriced == first.unpriced == ()


def test_sigmoids_and_joins_on_the_vpu(tmp_path: Path) -> None:
    """0.40 ms each beyond their memory traffic, and nothing."""
    plain = write(tmp_path / "plain.onnx", "y = Tanh(x)")
    slow = write(tmp_path / "slow.onnx", "y = Sigmoid(x)")
    joined = write(tmp_path / "joined.onnx", "a = Tanh(x)\ny = Concat<axis=1>(a, x)")
    ms = {
        (device, path.stem): predict(path, device=load_device(device)).latency_ms
        for device in ("cpu", "vpu")
        for path in (plain, slow, joined)
    }
    assert ms["vpu", "slow"] - ms["vpu", "plain"] == pytest.approx(0.40)
    assert ms["cpu", "slow"] == ms["cpu", "plain"]
    assert ms["vpu", "joined"] == ms["vpu", "plain"]
    assert ms["cpu", "joined"] > ms["cpu", "plain"] + 0.017


def test_a_device_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(QuadranasError, match="'host' has no analytic model"):
        predict(tmp_path / "net.onnx", device=load_device("host"))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16", "int8"])
def test_every_precision_of_a_device_has_a_price(tmp_path: Path, precision: str) -> None:
    path = write(tmp_path / "net.onnx", "y = Relu(x)")
    device = load_device("gpu").model_copy(update={"precision": precision})
    size = {"fp32": 4, "tf32": 4, "int8": 1}.get(precision, 2)
    expected = 2 * 2048 * size / 1555e6 + 0.011
    assert predict(path, device=device).latency_ms == pytest.approx(expected)


def test_the_command(tmp_path: Path) -> None:
    weights = {"w": (8, 8, 3, 3)}
    path = write(tmp_path / "net.onnx", "a = Conv(x, w)\ny = Relu(a)", weights)
    shown = call("predict", path, "--device", "cpu")
    assert (shown.code, shown.err) == (0, "")
    assert "Conv Relu" in shown.out
    conv_ms = 8 * 8 * 9 * 14 * 14 / (9.94e6 * 8 / 19.5) + 0.017
    assert f"{path}: {conv_ms:.4g} ms for 1x8x16x16 on cpu; 0.1 M MACs" in shown.out
    assert (
        "analytic (Arm Cortex-A76 (Pixel 4), TFLite 2.1, fp32, threads: 1; expected" in shown.out
    )
    assert "LOWER BOUND" not in shown.out
    printed = call("predict", path, "--device", "cpu", "--json")
    assert parsed(printed, PredictResult) == predict(path, device="cpu")
    result = printed.json()
    (operator,) = result["operators"]
    assert operator["ops"] == ["Conv", "Relu"]
    assert result["latency_ms"] == operator["latency_ms"] == pytest.approx(conv_ms)
    assert (result["unpriced"], result["is_lower_bound"]) == ([], False)
    assert (result["device"], result["precision"]) == ("cpu", "fp32")
    assert result["expected_error"].startswith("3.6 % MAPE")


def test_what_could_not_be_priced_is_said_loudly(tmp_path: Path) -> None:
    nodes = "\n".join(["a = Relu(x)", *(f"d{i} = Det(a)" for i in range(4)), "y = Tanh(a)"])
    path = write(tmp_path / "[red]net.onnx", nodes)
    shown = call("predict", path, "--device", "vpu")
    assert "[red]net.onnx: at least 0.0" in shown.out
    assert "NOT PRICED: 4 x Det (d0, d1, d2, ...)" in shown.out
    assert "The latency is a LOWER BOUND" in shown.out
    printed = call("predict", path, "--device", "vpu", "--json")
    assert parsed(printed, PredictResult) == predict(path, device="vpu")
    result = printed.json()
    assert result["unpriced"] == [{"op": "Det", "count": 4, "nodes": ["d0", "d1", "d2", "d3"]}]
    assert result["is_lower_bound"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.onnx", "--device", "cpu"), "cannot read model missing.onnx: No such file"),
        (("net.onnx", "--device", "host"), "device 'host' has no analytic model"),
        (("net.onnx", "--device", "vpx"), "did you mean 'vpu'?"),
        (("net.onnx", "--device", "cpu", "--resolution", "32"), "has the fixed size 16, not 32"),
    ],
)
def test_faults_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "net.onnx", "y = Relu(x)")
    outcome = call("predict", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


class Attention(nn.Module):
    """Patches, a class token, one block of a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(
            16, 2, 32, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        out: Tensor = self.head(self.block(x)[:, 0])
        return out


@pytest.mark.parametrize("opset", [14, 18])
def test_attention_is_priced_whole(tmp_path: Path, opset: int) -> None:
    """Its shapes are computed in the file; 16 channels, 17 tokens, 2 heads, hidden layer of 32."""
    path = tmp_path / "net.onnx"
    axes = {"images": {0: "batch"}}
    options = {"input_names": ["images"], "dynamic_axes": axes, "opset_version": opset}
    result = predict(
        save(Attention(), path, size=32, dynamo=False, **options), device=load_device("cpu")
    )
    assert result.unpriced == ()
    linear = 17 * 16 * (3 * 16 + 16 + 2 * 32)
    assert result.macs == 16 * 192 * 16 + linear + 2 * 17 * 17 * 16 + 160


def test_weights_that_operators_share_count_once(tmp_path: Path) -> None:
    """One matrix and one bias for three parts; each launch still reads them."""
    nodes = (
        "a, b, c = Split<axis=1, num_outputs=3>(x)\nd = Gemm<transB=1>(a, w, v)\n"
        "e = Gemm<transB=1>(b, w, v)\nt = Transpose<perm=[1,0]>(w)\nf = MatMul(c, t)\n"
        "y = Concat<axis=1>(d, e, f)"
    )
    path = write(tmp_path / "net.onnx", nodes, {"w": (100, 100), "v": (100,)}, image=(1, 300))
    result = predict(path, device="cpu")
    assert result.params == 100 * 100 + 100
    layers = [operator.params for operator in result.operators if operator.macs]
    assert layers == [10_100, 10_100, 10_000]


@pytest.mark.parametrize(
    "step",
    [
        'u = Resize<mode="nearest">(a, , scales)',
        "u = Reshape(a, shape)",
        "u = Pad(a, around)",
        "u = Clip(a, zero, six)",
        "u = Slice(a, none, ends)",
    ],
)
def test_sizes_and_limits_are_no_parameters(tmp_path: Path, step: str) -> None:
    weights: Weights = {
        **{"w": (8, 8, 3, 3), "zero": 0.0, "six": 6.0, "shape": [1, 8, 7, 28]},
        **{"around": [0, 0, 1, 1, 0, 0, 1, 1], "none": [0, 0], "ends": [1, 8]},
    }
    whole = model(f"a = Conv(x, w)\n{step}\ny = Conv(u, w)", weights)
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    whole.graph.initializer.append(scales)
    (tmp_path / "net.onnx").write_bytes(whole.SerializeToString())
    assert predict(tmp_path / "net.onnx", device="cpu").params == 8 * 8 * 9


def test_of_an_embedding_only_the_rows_that_are_needed_are_read(tmp_path: Path) -> None:
    whole = model("e = Gather(table, ids)\ny = Relu(e)", {"table": (30_000, 64)}, (1, 7))
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, (1, 7))
    whole.graph.input[0].CopyFrom(ids)
    (tmp_path / "net.onnx").write_bytes(whole.SerializeToString())
    result = predict(tmp_path / "net.onnx", device="cpu")
    assert result.params == 30_000 * 64
    assert result.operators[0].params == 7 * 64


@pytest.mark.parametrize(
    ("nodes", "known"),
    [
        ("y = Det(x)", "none of its 1 operators"),
        ("a = Relu(x)\n" + "\n".join(f"b{i} = Det(a)" for i in range(10)), "only 1 of its 11"),
        ("a = Relu(x)\ny = Thing(a, w)", "0 of 576 weights"),
    ],
)
def test_a_prediction_of_next_to_nothing_is_refused(
    tmp_path: Path, nodes: str, known: str
) -> None:
    path = write(tmp_path / "net.onnx", nodes, {"w": (8, 8, 3, 3)})
    outcome = call("predict", path, "--device", "cpu")
    assert (outcome.code, outcome.out) == (2, "")
    assert known in outcome.err
    assert "can be priced" in outcome.err
    assert "Measure it in its runtime" in outcome.err


@pytest.mark.parametrize(
    ("weights", "image", "dims"),
    [((8, 8, 3), (1, 8, 99), 1), ((8, 8, 3, 3, 3), (1, 8, 9, 9, 9), 3)],
)
def test_other_dimensions_than_the_model_was_fitted_to_are_said(
    tmp_path: Path, weights: tuple[int, ...], image: tuple[int, ...], dims: int
) -> None:
    path = write(tmp_path / "net.onnx", "y = Conv(x, w)", {"w": weights}, image=image)
    (note,) = predict(path, device="cpu").notes
    assert f"over {dims} spatial" in note
    assert f"NOTE: {note}" in call("predict", path, "--device", "cpu").out
    flat = write(tmp_path / "flat.onnx", "y = Conv(x, w)", {"w": (8, 8, 3, 3)})
    assert predict(flat, device="cpu").notes == ()


def test_inputs_are_named_on_the_command_line(tmp_path: Path) -> None:
    nodes = "t = Transpose<perm=[0,3,1,2]>(x)\ny = Conv(t, w)"
    image = ("unk__1", "unk__2", "unk__3", 3)
    path = write(tmp_path / "net.onnx", nodes, {"w": (8, 3, 3, 3)}, image=image)
    refused = call("predict", path, "--device", "cpu")
    assert refused.code == 2
    assert "--input x=1,224,224,3" in refused.err
    shown = call("predict", path, "--device", "cpu", "--input", "x=1,96,64,3", "--json")
    expected = predict(path, device="cpu", inputs={"x": (1, 96, 64, 3)})
    assert parsed(shown, PredictResult) == expected
    assert (expected.inputs, expected.macs) == (((1, 96, 64, 3),), 94 * 62 * 8 * 27)
