"""Networks as ONNX, for ONNX Runtime and OpenVINO."""

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quadranas.backends.interface import BATCH, Conversion
from quadranas.errors import QuadranasError
from quadranas.latency.runtimes import ONNX_OPSET, ONNX_OPSETS

TRACED_OPSETS = range(ONNX_OPSETS[0], ONNX_OPSET)
"""The opsets that only PyTorch's older, tracing exporter writes."""

LAYER_NORM_OPSET = 17
"""The first opset with LayerNormalization."""

OLD_LOWERING = (
    "fold_batch_norm",
    "fold_layer_scale",
    "linear_as_convolution",
    "decompose_layer_norm",
)
"""The passes for older opsets. Their readers run convolutions fastest, so transpositions are
removed first, and norms are then written out over channels."""


def passes_for(conversion: Conversion, lowering: tuple[str, ...]) -> tuple[str, ...]:
    """The passes of a conversion: `lowering`, unless the opset has no LayerNormalization."""
    is_old = conversion.opset is not None and conversion.opset < LAYER_NORM_OPSET
    return OLD_LOWERING if is_old else lowering


def check_opset(opset: int, accepted: range) -> None:
    """Check an ONNX opset.

    Raises:
        QuadranasError: the opset is not accepted.
    """
    if opset not in accepted:
        raise QuadranasError(
            f"ONNX opset {opset} is not supported; accepted: {accepted[0]} to {accepted[-1]}",
            "Omit it for the default of the device.",
        )


def to_onnx(network: nn.Module, conversion: Conversion) -> bytes:
    """A network in evaluation mode as an ONNX model.

    The input is `images`, (B, C, H, W), float32; the output is `logits`. Nodes are named after
    their layer, as in `blocks.stage1_entry.patch_stem.conv/Conv`. Metadata about their origin is
    removed, which halves the file of a small network.

    Raises:
        QuadranasError: the opset is not supported, or lacks an operation of the network.
    """
    opset = ONNX_OPSET if conversion.opset is None else conversion.opset
    check_opset(opset, ONNX_OPSETS)
    write = _trace if opset in TRACED_OPSETS else _capture
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' own deprecations (torch 2.13)
            model = write(network.eval(), conversion, opset)
    except torch.onnx.OnnxExporterError as error:
        raise QuadranasError(
            f"{type(network).__name__} cannot be written as ONNX of opset {opset}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    _name_nodes(model, [name for name, _ in network.named_modules()])
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def read_onnx(path: Path) -> Any:
    """Read a model from its file.

    Raises:
        QuadranasError: it cannot be read, or its weights are in other files, which this package
            never writes.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise QuadranasError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # protobuf raises its own kind
        raise QuadranasError(
            f"{path} is not an ONNX model, or it is damaged: {error}",
            "Convert the network again.",
        ) from error
    if not model.graph.node or not model.opset_import:
        raise QuadranasError(
            f"{path} is not an ONNX model: it is empty", "Convert the network again."
        )
    if any(tensor.data_location for tensor in model.graph.initializer):
        raise QuadranasError(
            f"{path} refers to other files for its weights", "Convert the network again."
        )
    return model


def count_nodes(path: Path) -> dict[str, int]:
    """Number of nodes of each operator in a file.

    Raises:
        QuadranasError: it cannot be read.
    """
    return dict(Counter(node.op_type for node in read_onnx(path).graph.node).most_common())


def _capture(network: nn.Module, conversion: Conversion, opset: int) -> Any:
    """Export through `torch.export`."""
    example, free = conversion.capture_inputs()
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=free,
        opset_version=opset,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _trace(network: nn.Module, conversion: Conversion, opset: int) -> Any:
    """Export by tracing, which PyTorch's newer exporter replaced."""
    import io

    import onnx

    # torch 2.13 turns this log on by mistake (setup_onnx_logging), and on stdout
    torch._C._jit_set_onnx_log_output_stream("stderr")
    free = {"images": {0: BATCH}, "logits": {0: BATCH}} if conversion.dynamic_batch else None
    file = io.BytesIO()
    torch.onnx.export(
        network,
        (torch.zeros(*conversion.input_shape),),
        file,  # type: ignore[arg-type] # a buffer is accepted too
        dynamo=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes=free,
        opset_version=opset,
    )
    return onnx.load_from_string(file.getvalue())


def _name_nodes(model: Any, layers: Sequence[str]) -> None:
    """Name every node after its layer, and remove the exporter's metadata."""
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        name = f"{_layer_of(node, layers)}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"
        del node.metadata_props[:]
        node.doc_string = ""
    graph = model.graph
    values = (*graph.value_info, *graph.initializer, *graph.input, *graph.output)
    for noted in (model, graph, *values):
        del noted.metadata_props[:]
        noted.doc_string = ""


def _layer_of(node: Any, layers: Sequence[str]) -> str:
    """The path of the module that a node belongs to; empty for the network itself."""
    notes = {note.key: note.value for note in node.metadata_props}
    scopes = notes.get("pkg.torch.onnx.name_scopes")
    if scopes is not None:  # outermost first; the last is the operation
        found: list[str] = ast.literal_eval(scopes)
        return found[-2] if len(found) > 1 else ""
    # The tracing exporter leaves out modules that are not called, such as lists.
    path = ".".join(part for part in node.name.split("/")[:-1] if part)
    whole = [layer for layer in layers if path and f".{layer}".endswith(f".{path}")]
    return whole[0] if len(whole) == 1 else path
