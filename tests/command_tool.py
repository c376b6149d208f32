"""A program that times an ONNX file, as a device's command: arguments as keys and values."""

import sys
import time
from typing import Any

TOOL: dict[str, Any] = {
    "tool": "a script with ONNX Runtime 1",
    "format": "onnx",
    "run": [
        *(sys.executable, __file__),
        *("file={file}", "input={input}", "output={output}", "repeats={repeats}"),
    ],
    "times": {"pattern": "call took ([0-9.]+) ms", "unit": "ms"},
    "output_file": "npy",
    "on_this_machine": True,
}
"""The section 'command' of a device that is timed by this program."""


def main() -> None:
    """Print the time of every call in milliseconds, and write the output."""
    import numpy as np
    import onnxruntime

    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(given["file"], options, ["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: np.load(given["input"])}
    (output,) = session.run(None, inputs)
    for _ in range(int(given["repeats"])):
        start = time.perf_counter_ns()
        session.run(None, inputs)
        sys.stdout.write(f"call took {(time.perf_counter_ns() - start) / 1e6:.6f} ms\n")
    if "output" in given:
        np.save(given["output"], output)


if __name__ == "__main__":
    main()
