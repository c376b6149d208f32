"""8 bits: which layers, what is lost, and what stays in higher precision when it is too much."""

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quadranas.backends.interface import Conversion, QuantizingBackend
from quadranas.backends.onnx_quantization import layer_of
from quadranas.backends.registry import open_backend
from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.dataset import Dataset, load_dataset
from quadranas.deployment.manifest import Quantization
from quadranas.deployment.quantization import quantized
from quadranas.deployment.rounding import (
    BEST_DB,
    branch_ranges,
    layer_errors,
    rounded,
    rounded_weight,
)
from quadranas.errors import MissingExtraError, PromiseMissedError, QuadranasError
from quadranas.latency.runtimes import RUNTIMES, RuntimeFiles
from quadranas.layers.adapted import AdaptedLayer
from quadranas.layers.quadratic import QuadraticConv2d, QuadraticLinear
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_weights, save_tensors
from tests.command_line import listing
from tests.commands.test_export import architecture
from tests.measuring import board, skip_without_litert, trace_exports
from tests.sharing import Share

pytestmark = pytest.mark.usefixtures("exports")

Scrambler = Callable[..., nn.Module]
Array = NDArray[np.float32]

RUNNING = ("onnxruntime", "openvino", "litert")
QUADRATIC = "blocks.stage1_block2.quadratic_depthwise.conv"
UNHARMED = "blocks.stage1_block1.quadratic_depthwise.conv"
LINEAR = "blocks.head.norm_head.linear"
SPREAD = 3000.0
PROCESSOR = Path("/proc/cpuinfo")
SATURATES = (
    PROCESSOR.exists() and "avx2" in (FLAGS := PROCESSOR.read_text()) and "vnni" not in FLAGS
)
MAX_ERROR = 0.05 if SATURATES else 0.02
"""Share of the squares that rounding changes; without VNNI x86 adds in 16 bits and saturates."""


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files for ONNX Runtime are traced: an export for any batch takes two seconds.

    A file as users get it is quantised in `tests/commands/test_export.py`, and here for OpenVINO.
    """
    trace_exports(monkeypatch)


@dataclass
class Digits:
    """Handwritten digits as a network sees them."""

    dataset: Dataset
    augmenter: Augmenter

    def test(self) -> tuple[Tensor, Tensor]:
        test = self.dataset.test
        return self.augmenter.plain(test.batch(torch.arange(len(test)))), test.labels

    def calibration(self, count: int = 32) -> list[Array]:
        images = self.augmenter.plain(self.dataset.train.batch(torch.arange(count)))
        return [image[None].contiguous().numpy() for image in images]


@pytest.fixture(scope="module")
def digits() -> Digits:
    dataset = load_dataset(None, resolution=32, seed=0)
    augmenter = Augmenter(
        AugmentConfig(flip=False, crop_padding=0),
        num_classes=10,
        mean=dataset.mean,
        std=dataset.std,
    )
    return Digits(dataset, augmenter)


@pytest.fixture(scope="module")
def trained(digits: Digits, share: Share) -> nn.Module:
    """The toy space's largest network after some epochs."""
    torch.manual_seed(0)
    network = build_subnet(architecture("toy"))
    train = digits.dataset.train

    def save_trained(path: Path) -> None:
        optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
        for _ in range(6):
            for indices in torch.randperm(len(train)).split(64):
                loss = cross_entropy(
                    network(digits.augmenter.plain(train.batch(indices))), train.labels[indices]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        save_tensors(network.state_dict(), path)

    path = share("networks/trained.safetensors", save_trained)
    load_weights(network, path)
    return network.eval()


@pytest.fixture(scope="module")
def stretched(trained: nn.Module) -> nn.Module:
    """The same function, but one channel each of two tensors has a range of its own.

    A branch of a quadratic layer, and the input of a linear one, are so many times larger there,
    which other weights undo.
    """
    network = copy.deepcopy(trained)
    conv, linear = network.get_submodule(QUADRATIC), network.get_submodule(LINEAR)
    norm = network.get_submodule("blocks.head.norm_head.norm")
    with torch.no_grad():
        for scale, part in ((SPREAD, "a"), (1 / SPREAD, "b")):
            for parameter in conv.get_submodule(part).parameters():
                parameter[0] *= scale
        for parameter in norm.parameters():
            parameter[0] *= SPREAD
        linear.get_parameter("weight")[:, 0] /= SPREAD
    return network


@pytest.fixture(scope="module", params=RUNNING)
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "litert":
        skip_without_litert()
    else:
        pytest.importorskip(name)
    if name == "openvino":
        pytest.importorskip("nncf")
    return name


@pytest.fixture(scope="module")
def backend(runtime: str) -> Iterator[QuantizingBackend]:
    opened = open_backend(board(runtime=runtime), Path())
    assert isinstance(opened, QuantizingBackend)
    yield opened
    opened.close()


def converted(
    backend: QuantizingBackend, network: nn.Module, folder: Path, name: str = "net", size: int = 32
) -> Path:
    files = facts_of(backend)
    path = folder / f"{name}{files.suffix}"
    conversion = Conversion(input_shape=(1, 3, size, size), dynamic_batch=files.free_batch)
    backend.convert(network, conversion, path)
    return path


def facts_of(backend: QuantizingBackend) -> RuntimeFiles:
    names = {runtime.backend.partition(":")[2]: runtime for runtime in RUNTIMES.values()}
    return names[type(backend).__name__].own_files


def outputs(backend: QuantizingBackend, path: Path, images: Tensor) -> Tensor:
    if facts_of(backend).free_batch:
        return backend.load(path, images.shape).run(images)
    program = backend.load(path, (1, *images.shape[1:]))
    return torch.cat([program.run(image[None]) for image in images])


def rounded_layers(path: Path) -> set[str]:
    """The layers whose products have weights in 8 bits, as a file itself says."""
    if path.suffix == ".onnx":
        graph = onnx.load(path).graph
        dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        return {
            layer_of(node.name)
            for node in graph.node
            if node.op_type in ("Conv", "Gemm", "MatMul")
            and dequantised.issuperset(node.input[:2])
        }
    if path.suffix == ".tflite":
        return litert_layers(path, "int8")
    import openvino

    def bytes_behind(op: Any) -> bool:
        if op.get_type_name() == "Constant":
            return bool(op.get_element_type().size == 1)
        return any(bytes_behind(value.get_node()) for value in op.input_values())

    return {
        layer_of(op.get_friendly_name())
        for op in openvino.Core().read_model(path).get_ordered_ops()
        if op.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
        and bytes_behind(op.input_value(1).get_node())
    }


def litert_layers(path: Path, dtype: str) -> set[str]:
    """The layers of a LiteRT file whose weights have a type."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(path), experimental_op_resolver_type=plain)
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    return {
        tensors[op["inputs"][1]]["name"].partition("/")[0]
        for op in interpreter._get_ops_details()
        if op["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        and tensors[op["inputs"][1]]["dtype"] == np.dtype(dtype)
    }


def accuracy_of(backend: QuantizingBackend, digits: Digits) -> Callable[[Path], float]:
    images, labels = digits.test()

    def accuracy(path: Path) -> float:
        return float((outputs(backend, path, images).argmax(1) == labels).float().mean())

    return accuracy


def quantize(
    backend: QuantizingBackend,
    network: nn.Module,
    digits: Digits,
    source: Path,
    max_drop: float,
    accuracy: Callable[[Path], float] | None = None,
) -> Quantization:
    images, labels = digits.test()
    with torch.no_grad():
        reference = float((network(images).argmax(1) == labels).float().mean())
    return quantized(
        backend,
        source,
        source.with_name(f"int8{source.suffix}"),
        network=network,
        images=digits.calibration(),
        accuracy=accuracy or accuracy_of(backend, digits),
        reference_accuracy=reference,
        max_drop=max_drop,
    )


@pytest.mark.usefixtures("traced")
def test_a_trained_network_keeps_its_accuracy(
    backend: QuantizingBackend, trained: nn.Module, digits: Digits, tmp_path: Path
) -> None:
    images, _ = digits.test()
    source = converted(backend, trained, tmp_path)
    found = quantize(backend, trained, digits, source, max_drop=1.0)
    target = source.with_name(f"int8{source.suffix}")
    assert found.kept == ()
    assert found.drop <= 1.0
    assert found.num_layers == len(backend.layers(source)) == 15
    assert found.num_calibration_images == 32
    assert rounded_layers(target) == set(backend.layers(source))
    stems = {path.name.partition(".")[0] for path in tmp_path.iterdir()}
    assert stems == {"net", "int8"}, listing(tmp_path)
    expected = outputs(backend, source, images)
    for batch in (images[:1], images):  # of any size
        got = outputs(backend, target, batch)
        error = (got - expected[: len(batch)]).square().mean() / expected.square().mean()
        assert 0 < error < MAX_ERROR


@pytest.mark.usefixtures("traced")
def test_only_the_layers_that_lose_too_much_stay(
    backend: QuantizingBackend, stretched: nn.Module, digits: Digits, tmp_path: Path
) -> None:
    source = converted(backend, stretched, tmp_path)
    target = source.with_name(f"int8{source.suffix}")
    accuracy, evaluated = accuracy_of(backend, digits), []

    def counted(path: Path) -> float:
        evaluated.append(accuracy(path))
        return evaluated[-1]

    found = quantize(backend, stretched, digits, source, max_drop=1.0, accuracy=counted)
    assert evaluated[0] < evaluated[-1] - 0.02
    # OpenVINO does not round the branches, so the linear layer alone is to blame there.
    assert LINEAR in found.kept
    assert set(found.kept) <= {LINEAR, QUADRATIC}
    assert found.drop <= 1.0
    assert len(evaluated) <= 4
    assert rounded_layers(target) == set(backend.layers(source)) - set(found.kept)


def test_what_suffers_most_is_known_without_a_runtime(
    stretched: nn.Module, digits: Digits
) -> None:
    layers = ["blocks.stage2_block2.feed_forward.expand", LINEAR, UNHARMED, QUADRATIC]
    images = digits.calibration()
    errors = layer_errors(stretched, images, layers)
    assert set(sorted(layers, key=lambda layer: -errors[layer])[:2]) == {LINEAR, QUADRATIC}
    noise = {(r.layer, r.part): r.signal_to_noise_db for r in branch_ranges(stretched, images)}
    assert noise[QUADRATIC, "a"] < 1 < 20 < noise[UNHARMED, "a"]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("runtime", ["onnxruntime"], indirect=True)
def test_what_cannot_be_kept_is_said_and_leaves_nothing(
    backend: QuantizingBackend, trained: nn.Module, digits: Digits, tmp_path: Path
) -> None:
    source = converted(backend, trained, tmp_path)
    before = listing(tmp_path)
    with pytest.raises(PromiseMissedError) as caught:
        quantize(backend, trained, digits, source, max_drop=-30.0)
    assert (
        "of 15 layers in higher precision; allowed: -30; tried to keep 0, 1, 2, 4, 8, 14"
        in str(caught.value)
    )
    assert listing(tmp_path) == before


def test_the_fewest_layers_are_kept(tmp_path: Path) -> None:
    """With a network of which the 11 most sensitive layers must stay."""
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(6, 6) for _ in range(40)))
    names = [str(index) for index in range(40)]
    images = [np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)]
    errors = layer_errors(network, images, names)
    needed = set(sorted(names, key=lambda name: -errors[name])[:11])
    tried: list[int] = []

    class Recorder:
        """Writes which layers it was told to keep."""

        def layers(self, path: Path) -> list[str]:
            return names

        def quantize(self, source: Path, target: Path, images: object, kept: Any) -> None:
            target.write_text(",".join(kept), encoding="utf-8")

    def accuracy(path: Path) -> float:
        kept = path.read_text(encoding="utf-8").split(",")
        tried.append(len(set(kept) - {""}))
        return 0.9 if needed <= set(kept) else 0.8

    found = quantized(
        Recorder(),  # type: ignore[arg-type] # only these two are called
        tmp_path / "net",
        tmp_path / "int8",
        network=network,
        images=images,
        accuracy=accuracy,
        reference_accuracy=0.91,
        max_drop=1.0,
    )
    assert tried == [0, 1, 2, 4, 8, 16, 12, 10, 11]
    assert set(found.kept) == needed
    assert list(found.kept) == sorted(found.kept, key=int)
    assert found.drop == pytest.approx(1.0)
    assert set((tmp_path / "int8").read_text(encoding="utf-8").split(",")) == needed


@pytest.mark.usefixtures("traced")
def test_the_same_input_gives_the_same_bytes_and_no_noise(
    backend: QuantizingBackend,
    trained: nn.Module,
    digits: Digits,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source = converted(backend, trained, tmp_path)
    contents = []
    for name in ("first", "second"):
        target = tmp_path / name / f"int8{source.suffix}"
        backend.quantize(source, target, digits.calibration(8), [QUADRATIC])
        contents.append({path.name: path.read_bytes() for path in target.parent.iterdir()})
    assert contents[0] == contents[1]
    assert capfd.readouterr() == ("", "")


def test_layers_are_checked(
    backend: QuantizingBackend, trained: nn.Module, digits: Digits, tmp_path: Path
) -> None:
    source = converted(backend, trained, tmp_path)
    target = tmp_path / f"int8{source.suffix}"
    layers = backend.layers(source)
    assert layers[:3] == [
        "blocks.stage1_entry.patch_stem.conv",
        "blocks.stage1_block1.quadratic_depthwise.conv",
        "blocks.stage1_block1.feed_forward.expand",
    ]
    assert layers[-1] == "blocks.head.norm_head.linear"
    with pytest.raises(QuadranasError, match=r"unknown layer 'blocks.head.norm_head.linea'.*did"):
        backend.quantize(source, target, digits.calibration(1), ["blocks.head.norm_head.linea"])
    assert not target.exists()
    backend.quantize(source, target, digits.calibration(1), layers)
    assert rounded_layers(target) == set()
    images, _ = digits.test()
    torch.testing.assert_close(
        outputs(backend, target, images), outputs(backend, source, images), rtol=1e-4, atol=1e-4
    )


def test_first_order_convolutions(
    backend: QuantizingBackend, scramble: Scrambler, tmp_path: Path
) -> None:
    described = architecture("mbconv")
    network = scramble(build_subnet(described)).eval()
    source = converted(backend, network, tmp_path, size=described.resolution)
    target = tmp_path / f"int8{source.suffix}"
    shape = (16, 3, described.resolution, described.resolution)
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    kept = backend.layers(source)[3]
    backend.quantize(source, target, [image[None].numpy() for image in images], [kept])
    assert rounded_layers(target) == set(backend.layers(source)) - {kept}
    expected, got = (outputs(backend, path, images) for path in (source, target))
    assert np.corrcoef(expected.flatten(), got.flatten())[0, 1] > 0.98


def test_ranges_of_branches(scramble: Scrambler) -> None:
    layer = QuadraticConv2d(4, 6, 3, padding=1, form="hadamard", norm=True)
    network = scramble(nn.Sequential(nn.Conv2d(3, 4, 1), layer)).train()
    images = [
        np.random.default_rng(i).normal(size=(2, 3, 5, 5)).astype(np.float32) for i in (0, 1)
    ]
    found = {entry.part: entry for entry in branch_ranges(network, images)}
    assert network.training
    assert list(found) == ["a", "b", "c", "product", "output"]
    exact = network.eval().double()
    with torch.no_grad():
        inputs = exact.get_submodule("0")(torch.from_numpy(np.concatenate(images)).double())
        a, b, c = (layer.norms[name](branch(inputs)) for name, branch in layer.branches.items())
    parts = {"a": a, "b": b, "c": c, "product": a * b, "output": a * b + c}
    for part, values in parts.items():
        entry, flat = found[part], values.numpy().ravel()
        assert entry.layer == "1"
        assert entry.minimum == pytest.approx(flat.min(), rel=1e-4)
        assert entry.maximum == pytest.approx(flat.max(), rel=1e-4)
        expected = np.sort(np.abs(flat))[int(np.ceil(0.99 * len(flat))) - 1]
        assert entry.typical == pytest.approx(expected, rel=1e-4)
        step = (max(flat.max(), 0) - min(flat.min(), 0)) / 255
        zero = np.round(-min(flat.min(), 0) / step)
        again = (np.clip(np.round(flat / step) + zero, 0, 255) - zero) * step
        wrong = (flat - again).reshape(values.shape)
        ratios = (values.numpy() ** 2).sum((0, 2, 3)) / (wrong**2).sum((0, 2, 3))
        expected_db = np.sort(10 * np.log10(ratios))[2]  # the lower median of six
        assert entry.signal_to_noise_db == pytest.approx(expected_db, abs=0.1)


def test_parts_of_other_neurons() -> None:
    images = [np.ones((2, 4), np.float32)]
    for form, parts in (("product", "ab"), ("bilinear", "c*"), ("input_square", "a")):
        found = branch_ranges(nn.Sequential(QuadraticLinear(4, 3, form=form)), images)
        names = [entry.part for entry in found]
        assert names == [{"*": "product"}.get(part, part) for part in parts] + ["output"]
    silent = QuadraticLinear(4, 3, form="product")
    nn.init.zeros_(silent.get_parameter("a.weight"))
    nn.init.zeros_(silent.get_parameter("a.bias"))
    assert branch_ranges(silent, images)[0].signal_to_noise_db == BEST_DB


def test_rounding_a_layer_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(8, 8), QuadraticLinear(8, 8, form="hadamard"), nn.Linear(8, 2)
    ).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = [np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)]
    errors = layer_errors(network, images, ["0", "1.joint", "2", "elsewhere"])
    outer = nn.Sequential()
    outer.add_module("blocks", nn.Sequential(network))
    assert layer_errors(outer, images, ["0.2"])["0.2"] == errors["2"]
    assert errors["elsewhere"] == 0
    assert all(0 < errors[layer] < 0.05 for layer in ("0", "1.joint", "2"))
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    x = torch.from_numpy(images[0])
    last = network[2]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        inputs, exact = network[:2](x), network(x)
        changed = nn.functional.linear(
            rounded(inputs, float(inputs.min()), float(inputs.max())),
            rounded_weight(last.weight),
            last.bias,
        )
    ratio = (changed - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert errors["2"] == pytest.approx(float(ratio), rel=1e-3)


def test_nothing_to_work_with(
    backend: QuantizingBackend, trained: nn.Module, digits: Digits, tmp_path: Path
) -> None:
    source = converted(backend, trained, tmp_path)
    with pytest.raises(QuadranasError, match="there are no images for calibration"):
        quantized(
            backend,
            source,
            tmp_path / "int8.onnx",
            network=trained,
            images=[],
            accuracy=lambda path: 1.0,
            reference_accuracy=1.0,
            max_drop=1.0,
        )


class Mixed(nn.Module):
    """Layers that are made of several, and a neuron with a matrix for every output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = AdaptedLayer(nn.Conv2d(3, 8, 3, padding=1), rank=2)
        self.bilinear = QuadraticConv2d(8, 6, 3, stride=2, form="bilinear")
        self.linear = AdaptedLayer(nn.Linear(6, 5), rank=2)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, 3, H, W) to (B, 5)."""
        out: Tensor = self.linear(self.bilinear(self.conv(x)).mean((2, 3)))
        return out


def test_layers_made_of_several(
    backend: QuantizingBackend, scramble: Scrambler, tmp_path: Path
) -> None:
    network = scramble(Mixed()).eval()
    if not facts_of(backend).free_batch:
        with pytest.raises(QuadranasError, match="Mixed cannot be converted for LiteRT: Didn't"):
            converted(backend, network, tmp_path, size=16)
        return
    source = converted(backend, network, tmp_path, size=16)
    target = tmp_path / f"int8{source.suffix}"
    images = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    backend.quantize(source, target, [image[None].numpy() for image in images], ["conv.mix"])
    assert {"conv.first_order", "conv.product", "bilinear", "linear.first_order"} <= (
        rounded_layers(target)
    )
    assert "conv.mix" not in rounded_layers(target)
    expected, got = (outputs(backend, path, images) for path in (source, target))
    assert np.corrcoef(expected.flatten(), got.flatten())[0, 1] > (0.9 if SATURATES else 0.95)


@pytest.mark.parametrize("runtime", ["openvino"], indirect=True)
def test_a_missing_extra_is_named(
    backend: QuantizingBackend,
    trained: nn.Module,
    digits: Digits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = converted(backend, trained, tmp_path)
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'quadranas\[int8\]'"):
        backend.quantize(source, tmp_path / "int8.xml", digits.calibration(1), [])
    assert listing(tmp_path) == ["net.bin", "net.xml"]
