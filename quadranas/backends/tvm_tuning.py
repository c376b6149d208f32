"""Tuning: find the fastest of several schedules on the device, for every kernel of a network.

Strategy: MetaSchedule's `replay-trace`, random schedules without a cost model. Thirty of them make
a linear layer thirty times faster; evolutionary search costs many times more (TVM 0.27).
"""

import hashlib
import importlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import tvm
import tvm_ffi
from tvm.s_tir import meta_schedule

from quadranas.backends.tvm_linker import Link, machine_of
from quadranas.backends.tvm_trials import MIN_REPEAT_MS, BoardRunner, KernelBuilder, Outcomes
from quadranas.backends.tvm_worker import Boards
from quadranas.errors import QuadranasError
from quadranas.files import read_json, write_json

STRATEGY = "replay-trace"
FAILED_S = 1e9
"""MetaSchedule records a failed trial as taking 1e10 s."""
DONE = "tuned.json"
INTRINSICS = {"x86_64": ("x86",), "aarch64": ("arm_cpu",)}
"""The parts of `tvm.s_tir.tensor_intrin` that schedules use, by instruction set."""


class Tuner:
    """Tunes kernels for a target and keeps the records.

    Args:
        records: folder, with one folder inside per target, number of trials and version.
        trials: number of schedules to try per kernel.
        emulated: whether the device is emulated; its records are kept separately.
        report: called for every kernel that is tuned.
    """

    def __init__(
        self,
        records: Path,
        target: Any,
        trials: int,
        boards: Boards,
        link: Link,
        *,
        emulated: bool,
        report: Callable[[str], None],
    ) -> None:
        self.target, self.trials, self.boards, self.link = target, trials, boards, link
        self.report = report
        self.min_repeat_ms = 0 if emulated else MIN_REPEAT_MS
        identity = {
            "target": json.loads(str(target)),
            "strategy": STRATEGY,
            "trials": trials,
            "emulated": emulated,
            "tvm": tvm.__version__,
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        name = str(target.attrs.get("mcpu", target.kind.name))
        self.folder = records / f"{name}-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "target.json", identity)
        self.trials_run = 0
        self.builder: KernelBuilder | None = None

    def tune(self, module: Any) -> Any:
        """The records of all kernels of a module; unknown kernels are tuned first.

        Raises:
            QuadranasError: no schedule of a kernel worked.
            DeviceLostError: no board is left; tuned kernels are kept.
        """
        database = meta_schedule.database.JSONDatabase(work_dir=str(self.folder))
        done = self._done()
        kernels = {
            kernel_id(task.dispatched[0]): task
            for task in meta_schedule.relax_integration.extract_tasks(module, self.target)
            if not task.mod.attrs.get("tirx.is_scheduled", False)
        }
        unknown = [
            (name, task)
            for name, task in kernels.items()
            if name not in done or best_s(database, task.dispatched[0], self.target) >= FAILED_S
        ]
        for number, (name, task) in enumerate(unknown, 1):
            self.report(f"tuning kernel {number} of {len(unknown)}")
            self._tune_kernel(task, database)
            done.append(name)
            write_json(self.folder / DONE, {"kernels": done})
        return database

    def close(self) -> None:
        """End the building process."""
        if self.builder is not None:
            self.builder.close()

    def _done(self) -> list[str]:
        """The kernels whose tuning was completed."""
        path = self.folder / DONE
        return list(read_json(path, "tuning records")["kernels"]) if path.exists() else []

    def _tune_kernel(self, task: Any, database: Any) -> None:
        runner = BoardRunner(self.boards, self.min_repeat_ms)
        outcomes = Outcomes()
        if self.builder is None:
            self.builder = KernelBuilder(self.link)
        with closing(runner), _cpu_intrinsics(self.target), _interruptible():
            self._tune_with(task, database, runner, outcomes)
        self.trials_run += outcomes.count
        if runner.lost is not None:
            raise runner.lost
        if best_s(database, task.dispatched[0], self.target) >= FAILED_S:
            reason = outcomes.most_common()
            raise QuadranasError(
                f"tuning failed: none of {outcomes.count} schedules of the kernel "
                f"{task.task_name!r} ran for the target {self.target}: {reason}",
                "Check the target of the device; or leave kernels untuned with tuning_trials: 0.",
            )

    def _tune_with(
        self, task: Any, database: Any, runner: BoardRunner, outcomes: Outcomes
    ) -> None:
        context = meta_schedule.TuneContext(
            mod=task.dispatched[0],
            target=task.target,
            space_generator="post-order-apply",
            search_strategy=STRATEGY,
            task_name=task.task_name,
            rand_state=1,  # the same schedules every time
            num_threads=1,
            logger=_silent(),
        ).clone()
        measure_callback = meta_schedule.measure_callback
        meta_schedule.tune.tune_tasks(
            tasks=[context],
            task_weights=[1.0],
            work_dir=str(self.folder),
            max_trials_global=self.trials,
            num_trials_per_iter=min(self.trials, 64),
            builder=self.builder,
            runner=runner,
            database=database,
            cost_model="random",  # not used by replay-trace
            measure_callbacks=[
                measure_callback.AddToDatabase(),
                measure_callback.RemoveBuildArtifact(),
                outcomes,
            ],
            task_scheduler=meta_schedule.task_scheduler.RoundRobin(),
        )


def kernel_id(module: Any) -> str:
    """Identifies a kernel across processes."""
    return f"{tvm_ffi.structural_hash(module) & (2**64 - 1):016x}"


def best_s(database: Any, module: Any, target: Any) -> float:
    """Seconds of the fastest recorded schedule of a kernel; infinite without one."""
    record = database.query_tuning_record(module, target, "main")
    if record is None or not record.run_secs:
        return float("inf")
    seconds = [float(value) for value in record.run_secs]
    return sum(seconds) / len(seconds)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at a signal; in callbacks, TVM (0.27) makes it a RuntimeError."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no KeyboardInterrupt arrives here
        return
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in found.items() if callable(handler)}
    arrived = threading.Event()

    def noticed(number: int, frame: FrameType | None) -> None:
        arrived.set()
        handlers[signal.Signals(number)](number, frame)

    for number in handlers:
        signal.signal(number, noticed)
    try:
        yield
    except RuntimeError:
        if arrived.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _silent() -> logging.Logger:
    logger = logging.getLogger("quadranas.tvm")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


@contextmanager
def _cpu_intrinsics(target: Any) -> Iterator[None]:
    """A context in which MetaSchedule imports of `tvm.s_tir.tensor_intrin` what a target may use.

    Parsing all of it takes 16 s in each process (TVM 0.27), most of it for GPUs and for Arm.
    """
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        yield
        return
    spec = find_spec(name)
    assert spec is not None
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[name] = package
    try:
        machine = machine_of(str(target.attrs.get("mtriple", "")))
        for part in INTRINSICS.get(machine, ("x86", "arm_cpu")):
            importlib.import_module(f"{name}.{part}")
        yield
    finally:
        del sys.modules[name]  # a later import loads the complete module
