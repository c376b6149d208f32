"""Quantised files, in all forms that ONNX Runtime's tools write."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from quadranas.commands.predict import predict
from quadranas.latency.device import load_device
from tests.command_line import call
from tests.onnx_files import Weights, model

NODES = (
    "a = Conv<pads=[1,1,1,1]>(x, w, b)\nr = Relu(a)\nd = Conv<group=8>(r, dw)\ns = Add(d, r)\n"
    "p = GlobalAveragePool(s)\nf = Flatten(p)\ny = Gemm<transB=1>(f, v, c)"
)
WEIGHTS: Weights = {"w": (8, 8, 3, 3), "b": (8,), "dw": (8, 1, 1, 1), "v": (10, 8), "c": (10,)}
PARAMS = 8 * 8 * 9 + 8 + 8 + 80 + 10


class Images:
    """One image to calibrate with."""

    def __init__(self) -> None:
        self.left = [{"x": np.ones((1, 8, 16, 16), np.float32)}]

    def get_next(self) -> dict[str, Any] | None:
        return self.left.pop() if self.left else None


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One network in floating point and quantised."""
    tools = pytest.importorskip("onnxruntime.quantization", reason="needs ONNX Runtime")
    folder = tmp_path_factory.mktemp("quantised")
    forms = ("float", "qdq", "operators", "dynamic")
    paths = {form: folder / f"{form}.onnx" for form in forms}
    whole = model(NODES, WEIGHTS)
    for tensor in whole.graph.initializer:
        shape = onnx.numpy_helper.to_array(tensor).shape
        values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(whole, paths["float"])
    formats = tools.QuantFormat
    for form, kind in (("qdq", formats.QDQ), ("operators", formats.QOperator)):
        tools.quantize_static(paths["float"], paths[form], Images(), quant_format=kind)
    tools.quantize_dynamic(paths["float"], paths["dynamic"])
    return paths


@pytest.mark.parametrize("form", ["qdq", "operators", "dynamic"])
def test_a_quantised_file_is_priced_as_the_network_that_it_approximates(
    files: dict[str, Path], form: str
) -> None:
    """Where the device's model is not for int8, that is said, and it is no lower bound."""
    plain = predict(files["float"], device="cpu")
    found = predict(files[form], device="cpu")
    assert (plain.file_precision, plain.notes) == ("fp32", ())
    assert (found.file_precision, found.precision) == ("int8", "fp32")
    assert (found.is_lower_bound, found.unpriced) == (False, ())
    assert found.latency_ms == pytest.approx(plain.latency_ms)
    assert (found.params, found.macs) == (plain.params, plain.macs) == (PARAMS, plain.macs)
    (note,) = found.notes
    assert "quantised to int8; it is priced as fp32" in note
    shown = call("predict", files[form], "--device", "cpu")
    assert f"NOTE: {note}" in shown.out
    assert "LOWER BOUND" not in shown.out


@pytest.mark.parametrize("form", ["qdq", "operators", "dynamic"])
def test_a_device_with_a_model_for_int8(files: dict[str, Path], form: str) -> None:
    device = load_device("cpu").configured(precision="int8")
    found, plain = (predict(files[name], device=device) for name in (form, "float"))
    assert (found.file_precision, found.precision, found.notes) == ("int8", "int8", ())
    assert found.latency_ms < predict(files[form], device="cpu").latency_ms
    assert found.latency_ms == pytest.approx(plain.latency_ms)
    assert "priced as int8, as if it were quantised" in plain.notes[0]


def test_weights_alone_can_be_quantised(tmp_path: Path) -> None:
    whole = model("d = DequantizeLinear(q, scale)\ny = Conv(x, d)", {"scale": 0.1})
    weights = np.zeros((8, 8, 1, 1), np.int8)
    whole.graph.initializer.append(onnx.numpy_helper.from_array(weights, "q"))
    (tmp_path / "net.onnx").write_bytes(whole.SerializeToString())
    found = predict(tmp_path / "net.onnx", device="cpu")
    assert (found.file_precision, found.params) == ("int8 (weights only)", 64)
    assert "quantised to int8 (weights only); it is priced as fp32" in found.notes[0]


def test_a_file_in_half_precision(tmp_path: Path) -> None:
    whole = model("y = Conv(x, w)")
    whole.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    weights = np.zeros((8, 8, 1, 1), np.float16)
    whole.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    (tmp_path / "net.onnx").write_bytes(whole.SerializeToString())
    on_cpu, on_vpu = (predict(tmp_path / "net.onnx", device=name) for name in ("cpu", "vpu"))
    assert on_cpu.file_precision == "fp16"
    assert on_cpu.notes == ("The file is in fp16; it is priced as fp32, the precision of cpu.",)
    assert on_vpu.notes == ()
