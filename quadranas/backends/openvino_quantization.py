"""OpenVINO models in 8 bits, by NNCF, Intel's compression framework.

Source: `nncf.quantize` with its defaults: weights signed, one scale per output channel;
activations one scale per tensor, unsigned if they have no sign; biases corrected (NNCF's "fast
bias correction"). Only products with weights are quantised. By default NNCF also rounds
sums, norms and the element-wise products of quadratic layers: with random weights the largest
error of a QuadraNet's logits was 31 % of the largest logit then, and 1 % without (32 pixels, NNCF
3.4.0, 2026-11-21).
"""

import contextlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from quadranas.backends.onnx_quantization import layer_of, refuse_unknown
from quadranas.extras import require_extra

WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")
"""Operators whose second input is a weight."""

NUMBERED = re.compile(r"[A-Za-z]+_\d+")
"""Names of the layers that OpenVINO adds: numbered in the order of the process."""

NO_OPERATORS = ("Constant", "Parameter", "Result")


def quantized_model(
    model: Any, images: Sequence[NDArray[np.float32]], kept: Collection[str]
) -> Any:
    """Quantise weights and activations to 8 bits in all layers but some.

    Raises:
        QuadranasError: a layer to keep does not exist.
        MissingExtraError: NNCF is not installed.
    """
    refuse_unknown(kept, layers_of(model))
    chosen = {op.get_friendly_name() for op in _weighted(model)}
    chosen = {name for name in chosen if layer_of(name) not in kept}
    if not chosen:
        return model
    others = sorted(
        op.get_friendly_name()
        for op in model.get_ops()
        if op.get_friendly_name() not in chosen and op.get_type_name() not in NO_OPERATORS
    )
    nncf = _nncf()
    with _silence():
        return nncf.quantize(
            model,
            nncf.Dataset([np.ascontiguousarray(batch) for batch in images]),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=others, validate=False),
        )


def layers_of(model: Any) -> list[str]:
    """The layers with weighted products, in order."""
    return list(dict.fromkeys(layer_of(op.get_friendly_name()) for op in _weighted(model)))


def _weighted(model: Any) -> list[Any]:
    return [
        op
        for op in model.get_ordered_ops()
        if op.get_type_name() in WEIGHTED and _is_constant(op.input_value(1).get_node())
    ]


def _is_constant(op: Any) -> bool:
    """Whether an operator's output depends on weights alone."""
    if op.get_type_name() in NO_OPERATORS:
        return bool(op.get_type_name() == "Constant")
    return all(_is_constant(value.get_node()) for value in op.input_values())


def _nncf() -> Any:
    """Import NNCF without its telemetry, which would send an event to Intel at every call."""
    reports = "openvino_telemetry"
    before = sys.modules.get(reports)
    if "nncf" not in sys.modules:
        sys.modules[reports] = None  # type: ignore[assignment] # NNCF works without it
    try:
        with _silence():
            require_extra("int8", "nncf")
            import nncf
    finally:
        if before is None:
            sys.modules.pop(reports, None)
        else:
            sys.modules[reports] = before
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress NNCF's progress bars on stdout and its internal warnings."""
    nowhere = io.StringIO()
    with (
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def compact_description(text: str) -> str:
    """A model's description without redundant and irreproducible parts.

    Shapes between layers are inferred when it is read; they would make up a quarter of the text.
    Information on its making is removed. Constants and added layers are numbered in order.
    """
    root = ET.fromstring(text)
    for note in root.findall("rt_info"):
        root.remove(note)
    for layer in root.iter("layer"):
        kind = layer.attrib["type"]
        if kind == "Const" or NUMBERED.fullmatch(layer.attrib["name"]):
            layer.attrib["name"] = f"{kind}_{layer.attrib['id']}"
    for port in root.iter("port"):
        for size in port.findall("dim"):
            port.remove(size)
    for element in root.iter():
        element.tail = None
        if element.text is not None and not element.text.strip():
            element.text = None
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
