"""Bytes at inference: against what an exported file holds, and against its graph run by hand."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper

from quadranas.backends.interface import Conversion
from quadranas.errors import QuadranasError
from quadranas.latency.device import load_device
from quadranas.measurement.bench import open_device
from quadranas.network.skeleton import build_subnet
from quadranas.space.architecture import Architecture
from quadranas.space.cost import PRIMITIVES, count_params
from quadranas.space.footprint import (
    KERNELS,
    format_bytes,
    parse_bytes,
    peak_bytes,
    weight_bytes,
)
from quadranas.space.operation import OpSpec
from quadranas.space.space_file import load_space


def exported(network: Architecture, path: Path) -> Any:
    """The ONNX graph of a network with random weights and statistics."""
    model = build_subnet(network).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    size = network.resolution
    with open_device(load_device("host").configured(runtime="onnxruntime")) as backend:
        backend.convert(model, Conversion(input_shape=(1, 3, size, size)), path)  # type: ignore[attr-defined]
    return onnx.shape_inference.infer_shapes(onnx.load(path)).graph


@pytest.mark.parametrize(
    ("name", "largest"),
    [("toy", False), ("toy", True), ("mbconv-mobile", False), ("mbconv-quadratic", False)],
)
def test_weights_are_those_of_an_exported_file(tmp_path: Path, name: str, largest: bool) -> None:
    space = load_space(name)
    network = space.extreme(count_params, largest=largest).adapted(num_classes=7)
    graph = exported(network, tmp_path / "net.onnx")
    # Scalars, such as the bounds of ReLU6, are part of a graph and no weights.
    weights = [numpy_helper.to_array(w) for w in graph.initializer if w.dims and w.data_type == 1]
    assert sum(map(weight_bytes, network.ops())) == sum(w.nbytes for w in weights)


def sizes_of(graph: Any) -> dict[str, int]:
    """Number of elements of every tensor of a graph."""
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    return {name: int(torch.tensor(shape).prod()) for name, shape in shapes.items()}


def peak_of(graph: Any) -> int:
    """Elements that are alive at once; an activation function shares its input's memory."""
    sizes, weights = sizes_of(graph), {w.name for w in graph.initializer}
    root: dict[str, str] = {}
    steps: list[tuple[str, list[str]]] = []
    for node in graph.node:
        read = [root.get(n, n) for n in node.input if n and n not in weights]
        read = [name for name in read if name in sizes]
        if node.op_type == "Clip":
            root[node.output[0]] = read[0]
        elif read:
            steps.append((node.output[0], read))
    peak = 0
    for number, (written, read) in enumerate(steps):
        later = {name for _, names in steps[number + 1 :] for name in names}
        before = {name for name, _ in steps[:number]} | {graph.input[0].name}
        alive = (before & later) | set(read) | {written}
        peak = max(peak, sum(sizes[name] for name in alive))
    return peak


@pytest.mark.parametrize("largest", [False, True])
def test_the_peak_is_that_of_the_graph_run_in_order(tmp_path: Path, largest: bool) -> None:
    """Chains of inverted bottlenecks, with and without a residual connection."""
    space = load_space("mbconv-mobile")
    network = space.extreme(lambda op: float(op.hidden_channels), largest=largest)
    graph = exported(network, tmp_path / "net.onnx")
    assert max(map(peak_bytes, network.ops())) == 4 * peak_of(graph)


def spec_of(kind: str, **keys: Any) -> OpSpec:
    size = {"in_channels": 8, "out_channels": 8, "resolution": 4, "kernel_size": 1, "stride": 1}
    return OpSpec.model_validate({"kind": kind, **size, **keys})


@pytest.mark.parametrize(
    ("spec", "elements"),
    [
        # The input, the norm, and the branches a, b and c; 8 x 4 x 4 elements each.
        (spec_of("quadratic_depthwise", kernel_size=3), 5 * 128),
        # The input, a, b and c, and their product; those are 4 times as wide.
        (spec_of("feed_forward", expand_ratio=4, num_quadratic=1), 128 + 4 * 512),
        # The input, and before and after GELU.
        (spec_of("feed_forward", expand_ratio=4, num_quadratic=0), 128 + 2 * 512),
        # The same; a quadratic convolution of the input needs four tensors beside it, 5 * 128.
        (spec_of("quadratic_convnext", kernel_size=7, expand_ratio=4), 128 + 2 * 512),
        # The input, kept for the sum, and before and after the depthwise convolution.
        (spec_of("mbconv", expand_ratio=6, kernel_size=3), 128 + 2 * 768),
        # No sum, so the input goes when it is expanded; the rest has a quarter of the pixels.
        (spec_of("mbconv", expand_ratio=6, kernel_size=3, stride=2), 768 + 192),
        # The input, kept for the sum, and the expanded input, a, b and c.
        (spec_of("quadratic_mbconv", expand_ratio=6, kernel_size=3), 128 + 4 * 768),
        (spec_of("downsample", kernel_size=2, stride=2, out_channels=16), 2 * 128),
        (spec_of("linear_head", out_channels=10), 128 + 8),
    ],
    ids=str,
)
def test_peaks_counted_by_hand(spec: OpSpec, elements: int) -> None:
    assert peak_bytes(spec) == 4 * elements
    assert peak_bytes(spec, "fp16") == 2 * elements
    assert peak_bytes(spec, "int8") == elements


def test_every_kind_of_operation_is_covered() -> None:
    assert set(KERNELS) == set(PRIMITIVES)


@pytest.mark.parametrize(
    ("text", "number"),
    [("4096", 4096), (4096, 4096), ("512KiB", 2**19), (" 1.5 mb ", 1_500_000), ("2GB", 2 * 10**9)],
)
def test_sizes_are_read(text: str | int, number: int) -> None:
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "MB", "0", "-3KB", "4 TB", "nan", "1e3B", "0.4B", "9" * 400])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(QuadranasError, match="cannot read the size"):
        parse_bytes(text)


def test_sizes_are_shown_with_three_digits() -> None:
    assert [format_bytes(n) for n in (999, 1000, 524288, 4e6, 2.5e9)] == [
        *("999 B", "1 KB", "524 KB", "4 MB", "2.5 GB"),
    ]
