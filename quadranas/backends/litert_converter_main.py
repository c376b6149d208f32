"""The process that writes LiteRT files: run by a Python that has litert-torch, not imported.

It imports nothing of quadranas. It reads JSON objects from stdin, one per line, such as
`{"id": 7, "do": "convert", "program": "a.pt2", "target": "a.tflite"}`, and answers each on stdout:
`{"id": 7, "result": {}}`, or `{"id": 7, "error": "what went wrong"}`. Networks and images are
passed as files. The process ends when stdin does. Written for litert-torch 0.10.0.
"""

import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Answer = dict[str, Any]

PACKAGES = ("litert-torch", "ai-edge-quantizer", "torch")
SIGNATURE = "serving_default"
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
RANGES: dict[bytes, dict[str, Any]] = {}
"""Ranges by the digest of a file and its images."""


def hello() -> Answer:
    """Versions of the packages that write files; those of absent ones are missing."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            sys.stderr.write(f"{package} is not installed\n")
    return {"versions": versions}


def convert(program: str, target: str) -> Answer:
    """Convert a program of `torch.export` whose only input is the keyword `images`."""
    litert_torch = importlib.import_module("litert_torch")
    torch = importlib.import_module("torch")
    exported = torch.export.load(program)
    (images,) = (
        node.meta["val"]
        for node in exported.graph.nodes
        if node.name in exported.graph_signature.user_inputs
    )
    example = torch.zeros(tuple(images.shape))
    converted = litert_torch.convert(exported.module(), sample_kwargs={"images": example})
    converted.export(target)
    return {}


def cast(source: str, target: str) -> Answer:
    """Write a file again with the weights in half precision; the rest is computed as before."""
    aeq = importlib.import_module("ai_edge_quantizer.quantizer")
    quantizer = aeq.Quantizer(source)
    for operator in WEIGHTED:
        quantizer.add_weight_only_config(
            ".*", operator, 16, algorithm_key=aeq.AlgorithmName.FLOAT_CASTING
        )
    quantizer.quantize().export_model(target, overwrite=True)
    return {}


def quantize(source: str, target: str, images: str, operators: str) -> Answer:
    """Write a file again with the weights and the input of some operators in 8 bits.

    Weights are symmetric, with a scale for each output channel; activations are asymmetric.

    Args:
        images: .npy file of inputs, (number, B, C, H, W).
        operators: JSON file with the names of the outputs of these operators.
    """
    outputs = json.loads(Path(operators).read_text(encoding="utf-8"))
    names = "|".join(map(re.escape, outputs))
    quantizer = _with_8_bits(source, f"^(?:{names});$")
    quantizer.quantize(_ranges(source, images)).export_model(target, overwrite=True)
    return {}


def _ranges(source: str, images: str) -> dict[str, Any]:
    """The ranges of a file's tensors on images; those of the last file are kept."""
    digest = hashlib.sha256(Path(source).read_bytes() + Path(images).read_bytes()).digest()
    if digest not in RANGES:
        RANGES.clear()
        inputs = [{"images": batch} for batch in importlib.import_module("numpy").load(images)]
        threads = os.cpu_count() or 1
        quantizer = _with_8_bits(source, ".*")
        RANGES[digest] = quantizer.calibrate({SIGNATURE: inputs}, num_threads=threads)
    return RANGES[digest]


def _with_8_bits(source: str, outputs: str) -> Any:
    quantizer = importlib.import_module("ai_edge_quantizer.quantizer").Quantizer(source)
    for operator in WEIGHTED:
        quantizer.add_static_config(outputs, operator, 8, 8)
    return quantizer


def answer(actions: dict[str, Callable[..., Answer]], line: str) -> Answer:
    """The answer to a request, which may describe a failure."""
    identity = None
    try:
        request = json.loads(line)
        identity = request.pop("id")
        return {"id": identity, "result": actions[request.pop("do")](**request)}
    except Exception as error:
        return {"id": identity, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def serve() -> None:
    """Answer until stdin ends; other output than answers goes to stderr."""
    os.environ |= {"LITERT_TORCH_SHOW_PROGRESS": "n", "JAX_PLATFORMS": "cpu"}
    stream: TextIO = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    actions: dict[str, Callable[..., Answer]] = {
        "hello": hello,
        "convert": convert,
        "cast": cast,
        "quantize": quantize,
    }
    for line in iter(sys.stdin.readline, ""):
        stream.write(json.dumps(answer(actions, line)) + "\n")
        stream.flush()


if __name__ == "__main__":
    serve()
