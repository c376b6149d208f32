"""Tables by another program and by hand, against fresh networks; see README.md."""

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from quadranas.backends.command import conversion_for, open_writer
from quadranas.commands.build_lut import build_lut
from quadranas.commands.validate_lut import fresh_networks, validate_lut
from quadranas.commands.write_probes import write_probes
from quadranas.files import source_commit
from quadranas.latency.calibration import NetworkLatency, agreement
from quadranas.latency.device import Device
from quadranas.latency.host import pinned
from quadranas.latency.table_files import load_table
from quadranas.measurement.plan import MAX_RESIDUAL, Plan
from quadranas.measurement.probes import network_probe
from quadranas.measurement.summary import timing_of
from quadranas.reporter import Reporter
from quadranas.space.space_file import load_space

HERE = Path(__file__).parent
NETWORKS, ROUNDS, REPEATS, CALLS = 20, 10, 50, 5
TOOL = str(Path(sys.executable).with_name("benchmark_app"))
BENCHMARK_APP: dict[str, Any] = {
    "tool": "OpenVINO's benchmark_app",
    "format": "openvino",
    "run": [
        *(TOOL, "-m", "{file}", "-d", "CPU", "-api", "sync", "-niter", "{repeats}"),
        *("-hint", "none", "-nstreams", "1", "-nthreads", "{threads}"),
        *("-infer_precision", "f32"),
    ],
    "times": {"pattern": "Median: +([0-9.]+) (?P<unit>us|ms|s)$"},
    "on_this_machine": True,
}


def device(name: str, command: dict[str, Any]) -> Device:
    """This machine, measured by a command or by hand."""
    content = {"name": name, "title": "this machine", "runtime": "command", "precision": "fp32"}
    return Device.model_validate(content | {"threads": 1, "command": command})


def by_command(space: str, folder: Path, plan: Plan, networks: int, residual: float) -> Any:
    """A table that `benchmark_app` measures, and its validation."""
    bench = device("benchmark_app", BENCHMARK_APP).allowing_commands()
    path = folder / "benchmark_app.json"
    settings = {"rounds": plan.num_rounds, "repeats": plan.repeats, "reporter": Reporter()}
    build_lut(space, device=bench, output=path, max_residual=residual, **settings)
    validate_lut(space, device=bench, table=path, networks=networks, **settings)
    return load_table(path).header.validation


def by_hand(space: str, folder: Path, passes: int, networks: int, residual: float) -> Any:
    """A table of times in a CSV file, against networks that are timed in the same way."""
    hand = device("by_hand", {"tool": "a stopwatch with ONNX Runtime", "format": "onnx"})
    with tempfile.TemporaryDirectory() as scratch:
        probes = write_probes(space, device=hand, folder=Path(scratch) / "probes")
        with probes.times.open(newline="", encoding="utf-8") as file:
            names = [row["file"] for row in csv.DictReader(file)]
        times = stopwatch([probes.folder / name for name in names], passes)
        filled = folder / "times.csv"
        with filled.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", *(f"time_{number + 1}_ms" for number in range(passes))])
            writer.writerows([name, *row] for name, row in zip(names, times, strict=True))
        path = folder / "by_hand.json"
        build_lut(space, device=hand, times=filled, output=path, max_residual=residual)
        table, fresh = load_table(path), fresh_networks(load_space(space), networks, 0)
        files = [Path(scratch) / f"{number}.onnx" for number in range(networks)]
        with closing(open_writer(hand, Path(scratch))) as writing:
            for network, file_path in zip(fresh, files, strict=True):
                shape = (1, 3, network.resolution, network.resolution)
                writing.convert(network_probe(network), conversion_for(hand, shape), file_path)
        latencies = [
            NetworkLatency(
                name=network.name,
                predicted_ms=table.predict_ms(network),
                measured_ms=timing_of([[ms] for ms in row]).latency_ms,
            )
            for network, row in zip(fresh, stopwatch(files, passes), strict=True)
        ]
    made = {"command": "python experiments/any_device/run.py", "commit": source_commit()}
    return agreement(latencies, date=datetime.now(UTC).strftime("%Y-%m-%d"), **made)


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


def main() -> None:
    """Measure in both ways, print a line each, keep tables and results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="toy space, few calls, not kept")
    args = parser.parse_args()
    space, plan, networks, residual, folder = (
        *("quadranet-mobile", Plan(num_rounds=ROUNDS, repeats=REPEATS)),
        *(NETWORKS, MAX_RESIDUAL, HERE),
    )
    if args.smoke:
        space, plan, networks, residual = "toy", Plan(num_rounds=2, repeats=2), 3, 1e9
        folder = Path(tempfile.mkdtemp())
    results = {"by hand": by_hand(space, folder, plan.num_rounds, networks, residual)}
    if not args.smoke:  # hundreds of starts of the program take minutes
        results["benchmark_app"] = by_command(space, folder, plan, networks, residual)
    for name, found in results.items():
        print(name, found.summary())
    if not args.smoke:
        content = {name: found.model_dump(mode="json") for name, found in results.items()}
        (HERE / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
