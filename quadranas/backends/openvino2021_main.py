"""The process that drives a Myriad stick: run by an old Python with OpenVINO 2021.4, not imported.

It is valid Python 3.6 and imports nothing of quadranas. It reads JSON objects from stdin, one per
line, such as `{"id": 7, "do": "time", "handle": 3, "repeats": 5}`, and answers each on stdout:
`{"id": 7, "result": {"ms": [...]}}`, or `{"id": 7, "error": "what went wrong"}`. Arrays are
passed as .npy files, so that a line always fits into a pipe. The process ends when stdin does.
"""

import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

Answer = dict[str, Any]

API = "openvino.inference_engine"


class Worker:
    """Loaded networks by handle, and the requests for them."""

    def __init__(self) -> None:
        self.core: Any = None
        self.networks: dict[int, Any] = {}
        self.num_loads = 0

    def hello(self, device: str) -> Answer:
        """Versions of this process, and the full name of a device (None: it is absent)."""
        core = self._open()
        name: str | None = None
        try:
            name = core.get_metric(device, "FULL_DEVICE_NAME")
        except Exception as error:
            sys.stderr.write(f"no name for {device}: {describe(error)}\n")
        return {
            "python": platform.python_version(),
            "numpy": importlib.import_module("numpy").__version__,
            "openvino": importlib.import_module(API).get_version(),
            "devices": list(core.available_devices),
            "name": name,
        }

    def load(self, path: str, device: str, config: dict[str, str]) -> Answer:
        """Compile an ONNX file, of opset 13 at most, for a device."""
        core = self._open()
        network = core.load_network(core.read_network(path), device, config, num_requests=1)
        self.num_loads += 1
        self.networks[self.num_loads] = network
        return {"handle": self.num_loads}

    def unload(self, handle: int) -> Answer:
        """Release a network and its memory on the device."""
        del self.networks[handle]
        return {}

    def run(self, handle: int, images: str, output: str) -> Answer:
        """Read the input from one .npy file, write the output to another."""
        numpy = importlib.import_module("numpy")
        request = self._filled(handle, numpy.load(images))
        request.infer()
        (blob,) = request.output_blobs.values()
        numpy.save(output, blob.buffer)
        return {}

    def time(self, handle: int, repeats: int) -> Answer:
        """Time calls on random numbers, in milliseconds, after one that is discarded.

        On a stick, a call includes the transfer over USB and back.
        """
        random = importlib.import_module("numpy").random.RandomState(0)
        (blob,) = self.networks[handle].requests[0].input_blobs.values()
        request = self._filled(handle, random.standard_normal(blob.buffer.shape))
        request.infer()
        latencies_ms = []
        for _ in range(repeats):
            start = time.perf_counter()
            request.infer()
            latencies_ms.append((time.perf_counter() - start) * 1e3)
        return {"ms": latencies_ms}

    def _open(self) -> Any:
        if self.core is None:
            self.core = importlib.import_module(API).IECore()
        return self.core

    def _filled(self, handle: int, images: Any) -> Any:
        """The inference request of a network, with its input set."""
        request = self.networks[handle].requests[0]
        (blob,) = request.input_blobs.values()
        if blob.buffer.shape != images.shape:
            raise ValueError(f"the network takes {blob.buffer.shape}, got {images.shape}")
        blob.buffer[:] = images
        return request


def describe(error: Exception) -> str:
    """Type and text of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def answer(actions: dict[str, Callable[..., Answer]], line: str) -> Answer:
    """The answer to a request, which may describe a failure."""
    identity = None
    try:
        request = json.loads(line)
        identity = request.pop("id")
        action = actions[request.pop("do")]
        return {"id": identity, "result": action(**request)}
    except Exception as error:
        return {"id": identity, "error": describe(error)}


def answers_only_on_stdout() -> TextIO:
    """The real stdout; other output, also that of C++ plugins, goes to stderr."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


def serve() -> None:
    """Answer until stdin ends."""
    stream = answers_only_on_stdout()
    worker = Worker()
    actions: dict[str, Callable[..., Answer]] = {
        "hello": worker.hello,
        "load": worker.load,
        "run": worker.run,
        "time": worker.time,
        "unload": worker.unload,
    }
    for line in iter(sys.stdin.readline, ""):
        stream.write(json.dumps(answer(actions, line)) + "\n")
        stream.flush()


if __name__ == "__main__":
    serve()
