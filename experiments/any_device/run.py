"""Tables by other runtimes, programs and people, against fresh networks; see README.md."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from stopwatch import fill_in, stopwatch

from quadranas.backends.command import conversion_for, open_writer
from quadranas.commands.build_lut import build_lut
from quadranas.commands.derive import derive
from quadranas.commands.export import export
from quadranas.commands.search import search
from quadranas.commands.validate_lut import fresh_networks, validate_lut
from quadranas.commands.write_probes import write_probes
from quadranas.files import stamp
from quadranas.latency.calibration import Agreement, NetworkLatency, agreement
from quadranas.latency.device import Device
from quadranas.latency.host import cpu_name
from quadranas.latency.runtimes import RUNTIMES
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import load_table
from quadranas.measurement.plan import MAX_RESIDUAL, Plan
from quadranas.measurement.probes import network_probe
from quadranas.measurement.summary import timing_of
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.space.space_file import load_space
from quadranas.strategies.limits import reachable_ms

HERE = Path(__file__).parent
COMMAND = "python experiments/any_device/run.py"
NUM_CLASSES = 10
SEARCH: dict[str, Any] = {
    "schedule": {
        **{"warmup_epochs": 0, "search_epochs": 5, "finetune_epochs": 0},
        "resolution_images": 0,
    },
    "gates": {"learning_rate": 0.1},
    "candidates": 1,
}
"""A short search for a large network: its gates then prefer networks that use a smaller budget."""
IMAGES = 32
"""Number of images that an exported file is compared with PyTorch on."""

PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
"""Where benchmark_app is looked for: first beside the interpreter."""

BENCHMARK_APP: dict[str, Any] = {
    "tool": "OpenVINO's benchmark_app",
    "format": "openvino",
    "run": [
        *("benchmark_app", "-m", "{file}", "-d", "CPU", "-api", "sync", "-niter", "{repeats}"),
        *("-hint", "none", "-nstreams", "1", "-nthreads", "{threads}"),
        *("-infer_precision", "f32"),
    ],
    "times": {"pattern": "Min: +([0-9.]+) (?P<unit>us|ms|s)$"},
    "on_this_machine": True,
}
PLAN, TOOL_PLAN = Plan(num_rounds=30), Plan(num_rounds=8, repeats=20)
BY_HAND = {"tool": "a stopwatch with ONNX Runtime", "format": "onnx"}


@dataclass(frozen=True)
class Setup:
    """What the parts have in common.

    Args:
        plan: rounds and calls of the runtimes; `tool_plan`: of `benchmark_app`; `passes`: by hand.
        residual: limit on the residual of a calibration.
        confidence: that a derived network is within its budget.
        folder: for tables and results.
        work: for everything else.
        board_python: the interpreter on the board.
    """

    folder: Path
    work: Path
    board_python: str
    space: str = str(HERE / "space.yaml")
    plan: Plan = PLAN
    tool_plan: Plan = TOOL_PLAN
    passes: int = 20
    networks: int = 20
    residual: float = MAX_RESIDUAL
    confidence: float | None = 0.95

    def table(self, device: Device) -> Path:
        """The file of a device's table."""
        return self.folder / f"{device.name}.json"


SMOKE: dict[str, Any] = {
    **{"space": "toy", "plan": Plan(num_rounds=2, repeats=2), "passes": 2, "networks": 3},
    **{"tool_plan": Plan(num_rounds=2, repeats=2), "residual": 1e9, "confidence": None},
}


def this_machine(name: str, runtime: str, **more: Any) -> Device:
    """This machine, with one thread, and in fp32 if nothing else is said."""
    content = {"name": name, "title": "this machine", "runtime": runtime, "precision": "fp32"}
    return Device.model_validate(content | {"threads": 1} | more)


def by_litert(setup: Setup, reporter: Reporter) -> dict[str, Any]:
    """LiteRT on this machine."""
    return measured(setup, this_machine("litert", "litert"), "litert", setup.plan, reporter)


def by_ssh(setup: Setup, reporter: Reporter) -> dict[str, Any]:
    """ONNX Runtime of another environment, behind OpenSSH on loopback."""
    from tests.ssh_board import ssh_board

    with tempfile.TemporaryDirectory() as folder, ssh_board(Path(folder)) as board:
        reach = board.reach(python=setup.board_python)
        device = this_machine("ssh", "onnxruntime", reach=reach)
        return measured(setup, device, "onnx", setup.plan, reporter)


def in_8_bits(runtime: str, setup: Setup, reporter: Reporter) -> dict[str, Any]:
    """A runtime of this machine in int8."""
    device = this_machine(f"{runtime}_int8", runtime, precision="int8")
    return measured(setup, device, RUNTIMES[runtime].own_files.format, setup.plan, reporter)


def by_benchmark_app(setup: Setup, reporter: Reporter) -> dict[str, Any]:
    """OpenVINO's benchmark program."""
    os.environ["PATH"] = PROGRAMS
    device = this_machine("benchmark_app", "command", command=BENCHMARK_APP)
    return measured(setup, device.allowing_commands(), "openvino", setup.tool_plan, reporter)


def by_hand(setup: Setup, reporter: Reporter) -> dict[str, Any]:
    """A table of times in a CSV file, against networks that are timed in the same way."""
    device = this_machine("hand", "command", command=BY_HAND)
    filled = setup.folder / "times.csv"
    if not filled.is_file():
        probes = write_probes(setup.space, device=device, folder=setup.work / "probes")
        fill_in(probes.times, filled, setup.passes)
    path = setup.table(device)
    path.unlink(missing_ok=True)
    build_lut(setup.space, device=device, times=filled, output=path, max_residual=setup.residual)
    table = load_table(path)
    validation = validated_by_hand(setup, device, table)
    exported = derived(setup, device, "onnx", table, reporter)
    ((*times,),) = stopwatch([exported.pop("path")], setup.passes)
    exported["measured_ms"] = timing_of([[ms] for ms in times]).latency_ms
    return described(table, validation, exported)


def validated_by_hand(setup: Setup, device: Device, table: LatencyTable) -> Agreement:
    """Fresh networks, written as files and timed with the stopwatch."""
    fresh = fresh_networks(load_space(setup.space), setup.networks, 0)
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{number}.onnx" for number in range(len(fresh))]
        with closing(open_writer(device, Path(scratch))) as writer:
            for network, path in zip(fresh, files, strict=True):
                shape = (1, 3, network.resolution, network.resolution)
                writer.convert(network_probe(network), conversion_for(device, shape), path)
        times = stopwatch(files, setup.passes)
    latencies = [
        NetworkLatency(
            name=network.name,
            predicted_ms=table.predict_ms(network),
            measured_ms=timing_of([[ms] for ms in row]).latency_ms,
        )
        for network, row in zip(fresh, times, strict=True)
    ]
    now = stamp()
    return agreement(latencies, command=COMMAND, date=now.date, commit=now.commit)


def measured(
    setup: Setup, device: Device, file_format: str, plan: Plan, reporter: Reporter
) -> dict[str, Any]:
    """A table, its validation, and a network that was derived by it."""
    path = setup.table(device)
    plans = {"rounds": plan.num_rounds, "repeats": plan.repeats, "reporter": reporter}
    shared = plans | {"device": device, "command": f"{COMMAND} --parts {device.name}"}
    if not path.is_file():
        build_lut(setup.space, output=path, max_residual=setup.residual, **shared)
    if load_table(path).header.validation is None:
        validate_lut(setup.space, table=path, networks=setup.networks, **shared)
    table = load_table(path)
    assert table.header.validation is not None
    exported = derived(setup, device, file_format, table, reporter)
    del exported["path"]
    return described(table, table.header.validation, exported)


def derived(
    setup: Setup, device: Device, file_format: str, table: LatencyTable, reporter: Reporter
) -> dict[str, Any]:
    """A network derived for the middle of the reachable range, exported and measured there."""
    low, high = reach(setup, table)
    budget = f"{(low + high) / 2:.3g}ms"
    folder = Path(tempfile.mkdtemp(dir=setup.work))
    shared = {"device": device, "budget": budget, "table": setup.table(device)}
    found = derive(
        searched(setup),
        **shared,
        output=folder / "network",
        candidates=1,
        confidence=setup.confidence,
        allow_commands=device.allows_commands,
        reporter=reporter,
    )
    bundle = export(
        found.run,
        **shared,
        format=file_format,
        precision=device.precision,
        max_drop=100 if device.precision == "int8" else None,
        allow_commands=device.allows_commands,
        images=IMAGES,
        reporter=reporter,
    )
    return {
        "reachable_ms": [low, high],
        "budget_ms": found.budget_ms,
        "confidence": found.confidence,
        "predicted_ms": found.predicted_ms,
        "measured_by_derive_ms": found.measured_ms,
        "measured_ms": bundle.measured_ms if bundle.measured_on == device.name else None,
        "path": bundle.path,
    }


def searched(setup: Setup) -> Path:
    """The run with the supernet that networks are derived from; searched once."""
    run = setup.work / "search"
    if not (run / layout.RESULT).is_file():
        path = setup.work / "vpu.json"
        build_lut(setup.space, device="vpu", backend="analytic", output=path)
        low, high = reach(setup, load_table(path))
        budget = f"{low + 0.9 * (high - low):.3g}ms"
        keys = {"space": setup.space, "device": "vpu", "budget": budget, "table": str(path)}
        search(output=run, resume=run.exists(), **keys, **SEARCH)
    return run


def reach(setup: Setup, table: LatencyTable) -> tuple[float, float]:
    """The latencies of the fastest and slowest network with the classes of the digits."""
    return reachable_ms(load_space(setup.space).with_num_classes(NUM_CLASSES), table)


def described(
    table: LatencyTable, validation: Agreement, network: dict[str, Any]
) -> dict[str, Any]:
    """The result of a part."""
    header = table.header
    assert header.measurement is not None
    assert header.calibration is not None
    measurement, latency_ms = header.measurement, network["measured_ms"]
    if latency_ms is None:
        sys.exit("the derived network was not measured; repeat the command on an idle machine")
    return {
        "runtime": header.runtime,
        "rounds": measurement.num_rounds,
        "repeats": measurement.repeats,
        "noise": measurement.noise,
        "dropped": measurement.dropped,
        "scale": header.scale,
        "residual": header.calibration.residual,
        "validation": validation.model_dump(mode="json"),
        "derive": network | {"within": latency_ms <= network["budget_ms"]},
    }


PARTS: dict[str, Callable[[Setup, Reporter], dict[str, Any]]] = {
    "litert": by_litert,
    "ssh": by_ssh,
    "benchmark_app": by_benchmark_app,
    "hand": by_hand,
    "litert_int8": partial(in_8_bits, "litert"),
    "onnxruntime_int8": partial(in_8_bits, "onnxruntime"),
    "openvino_int8": partial(in_8_bits, "openvino"),
}
QUICK = ("hand",)
"""The default of `--smoke`; the other parts need a converter, a server or hundreds of starts."""


def main() -> None:
    """Run the parts that have no result yet; print a line each, and keep it at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="toy space, few calls, not kept")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all")
    parser.add_argument("--work", type=Path, default=Path("runs/any_device"))
    parser.add_argument("--board-python", default=sys.executable, help="interpreter on the board")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp()) if args.smoke else None
    folder, work = scratch or HERE, scratch or args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    setup = Setup(folder, work, args.board_python, **(SMOKE if args.smoke else {}))
    place = folder / "results.json"
    results = json.loads(place.read_text("utf-8")) if place.is_file() else {"parts": {}}
    for name in args.parts or (QUICK if args.smoke else PARTS):
        if name in results["parts"]:
            print(f"{name}: already in {place}")
            continue
        start, now = time.monotonic(), stamp()
        with Reporter() as reporter:
            found = PARTS[name](setup, reporter)
        minutes = (time.monotonic() - start) / 60
        made = {"date": now.date, "commit": now.commit, "hardware": cpu_name(), "minutes": minutes}
        results["space"] = load_space(setup.space).name
        results["parts"][name] = made | found
        place.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(found["derive"]), f"{minutes:.1f} minutes")
        print(name, Agreement.model_validate(found["validation"]).summary(), flush=True)


if __name__ == "__main__":
    main()
