"""ONNX models in 8 bits: ONNX Runtime's static quantisation, in QuantizeLinear's notation (QDQ).

Weights are signed, symmetric, one scale per output channel. Activations are unsigned, one scale
per tensor: on x86 only unsigned times signed products have fast kernels (a QuadraNet of 0.4 G MACs
at 32 pixels, ONNX Runtime 1.31.1, AMD EPYC of family 26, 2026-11-21: 0.40 ms, signed ones 1.5 ms),
and ARM has both. An x86 processor without VNNI adds such products in 16 bits and may saturate.

Only products with weights are quantised. Sums, norms and the element-wise products of quadratic
layers stay in float: quantising them too made the same network slower (0.62 ms).
"""

import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadranas.backends.onnx_rewriting import join_bias, merge_constants, shorten_names
from quadranas.errors import unknown
from quadranas.files import write_atomically

WEIGHTED = ("Conv", "Gemm", "MatMul")
"""Operators whose second input is a weight."""


def quantize_onnx(
    source: Path, target: Path, images: Sequence[NDArray[np.float32]], kept: Collection[str]
) -> None:
    """See `QuantizingBackend.quantize`; the same input gives the same bytes.

    Raises:
        QuadranasError: a layer to keep does not exist, or the file cannot be written.
    """
    import onnx

    model = onnx.load(source)
    refuse_unknown(kept, layers_of(model))
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    join_bias(model, lambda node: layer_of(node.name) not in kept)
    chosen = [node.name for node in _weighted(model) if layer_of(node.name) not in kept]
    if chosen:
        model = _quantized(model, chosen, images)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.name = ""
    merge_constants(model)
    shorten_names(model, names)
    write_atomically(target, model.SerializeToString(deterministic=True))


def quantized_content(content: bytes, images: Sequence[NDArray[np.float32]]) -> bytes:
    """The content of a file with all layers in 8 bits."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(content)
        quantize_onnx(source, target, images, ())
        return target.read_bytes()


def layers_of(model: Any) -> list[str]:
    """The layers with weighted products, in order."""
    return list(dict.fromkeys(layer_of(node.name) for node in _weighted(model)))


def layer_of(node_name: str) -> str:
    """The path of the layer that a node is named after: `a.b/Conv_2` belongs to `a.b`."""
    return node_name.partition("/")[0]


def refuse_unknown(kept: Iterable[str], layers: Collection[str]) -> None:
    """Check that all layers to keep exist.

    Raises:
        QuadranasError: one does not; names the nearest.
    """
    for layer in kept:
        if layer not in layers:
            raise unknown("layer", layer, layers)


def _weighted(model: Any) -> list[Any]:
    sizes = {constant.name: list(constant.dims) for constant in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in WEIGHTED
        and node.input[1] in sizes
        # ONNX Runtime has no 8-bit kernel for the matrices of bilinear neurons.
        and (node.op_type != "MatMul" or len(sizes[node.input[1]]) == 2)
    ]


def _quantized(model: Any, chosen: list[str], images: Sequence[NDArray[np.float32]]) -> Any:
    """Quantise some nodes of a model, through two temporary files."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    producer = model.producer_name, model.producer_version
    # Otherwise ONNX Runtime warns and suggests a pass that would merge layers.
    add_pre_process_metadata(model)
    with tempfile.TemporaryDirectory() as folder:
        prepared, result = Path(folder) / "prepared.onnx", Path(folder) / "result.onnx"
        onnx.save(model, prepared)
        quantization.quantize_static(
            prepared,
            result,
            _reader(model.graph.input[0].name, images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(WEIGHTED),
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # A Gemm can return its sums in float, which saves two roundings; a Conv cannot.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        quantised = onnx.load(result)
    quantised.producer_name, quantised.producer_version = producer
    del quantised.metadata_props[:], quantised.graph.value_info[:]
    return quantised


def _reader(name: str, images: Sequence[NDArray[np.float32]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Returns one input after another."""

        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.left, None)
            return None if batch is None else {name: np.ascontiguousarray(batch)}

    return Reader()
