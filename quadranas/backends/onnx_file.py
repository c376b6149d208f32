"""Networks as ONNX: what ONNX Runtime and OpenVINO compile, and what `export` writes."""

import logging
import warnings

import torch
from torch import nn

OPSET = 18
BATCH = "batch"
"""The name of the free dimension."""


def to_onnx(network: nn.Module, channels: int, resolution: int) -> bytes:
    """A network in evaluation mode as an ONNX model, for any batch size.

    The input is `images`, (batch, channels, resolution, resolution), float32; the output `logits`.
    """
    network.eval()
    example = (torch.zeros(2, channels, resolution, resolution),)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations (torch 2.13)
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim(BATCH)},),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content
