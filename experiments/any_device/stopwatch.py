"""A stopwatch for ONNX files that knows nothing of the method; see README.md."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path

from quadranas.latency.host import pinned

CALLS = 5


def stopwatch(files: Sequence[Path], passes: int) -> list[list[float]]:
    """The times of every file in milliseconds: in each pass, the minimum of some calls."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with pinned(1):
        calls = []
        for path in files:
            session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
            images = np.random.default_rng(0).normal(size=session.get_inputs()[0].shape)
            calls.append((session, {"images": images.astype(np.float32)}))
        times: list[list[float]] = [[] for _ in files]
        for _ in range(passes):
            for row, (session, feeds) in zip(times, calls, strict=True):
                session.run(None, feeds)
                found = []
                for _ in range(CALLS):
                    start = time.perf_counter_ns()
                    session.run(None, feeds)
                    found.append((time.perf_counter_ns() - start) / 1e6)
                row.append(min(found))
    return times


def fill_in(times: Path, filled: Path, passes: int) -> None:
    """Time the files that `times.csv` names, and write its columns into another file."""
    with times.open(newline="", encoding="utf-8") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    found = stopwatch([times.parent / name for name in names], passes)
    with filled.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", *(f"time_{number + 1}_ms" for number in range(passes))])
        rounded = ([f"{ms:.6g}" for ms in row] for row in found)
        writer.writerows([name, *row] for name, row in zip(names, rounded, strict=True))
