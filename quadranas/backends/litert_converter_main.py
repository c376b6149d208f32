"""The process that writes LiteRT files: run by a Python that has litert-torch, not imported.

It imports nothing of quadranas. It reads JSON objects from stdin, one per line, such as
`{"id": 7, "do": "convert", "program": "a.pt2", "target": "a.tflite"}`, and answers each on stdout:
`{"id": 7, "result": {}}`, or `{"id": 7, "error": "what went wrong"}`. Networks and images are
passed as files. The process ends when stdin does. Written for litert-torch 0.10.0.
"""

import importlib
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

Answer = dict[str, Any]

PACKAGES = ("litert-torch", "ai-edge-quantizer", "torch")
SIGNATURE = "serving_default"


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
    torch = importlib.import_module("torch")
    litert_torch = importlib.import_module("litert_torch")
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
    }
    for line in iter(sys.stdin.readline, ""):
        stream.write(json.dumps(answer(actions, line)) + "\n")
        stream.flush()


if __name__ == "__main__":
    serve()
