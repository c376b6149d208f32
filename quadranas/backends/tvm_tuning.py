"""Tuning: for every kernel of a network, the fastest of some schedules tried on the device.

Strategy: MetaSchedule's `replay-trace`, random schedules without a cost model. Thirty of them make a
linear layer thirty times faster; evolutionary search costs many times more (TVM 0.27).
"""

import hashlib
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule
from tvm.s_tir.meta_schedule.measure_callback import PyMeasureCallback
from tvm.s_tir.meta_schedule.runner import PyRunner, PyRunnerFuture, RunnerResult

from quadranas.backends.tvm_linker import Link
from quadranas.backends.tvm_worker import Boards
from quadranas.errors import DeviceLostError, QuadranasError
from quadranas.files import read_json, write_json

STRATEGY = "replay-trace"
BUILD_S = 60.0
MIN_REPEAT_MS = 50
FAILED_S = 1e9
"""MetaSchedule records a failed trial as one of 1e10 s."""
ATTEMPTS = 2
"""A schedule that breaks two boards is a failed trial: it must not take the others along."""
EXPECTED_S = 10.0
DONE = "tuned.json"


class Tuner:
    """Tunes kernels for a target and keeps the records.

    Args:
        records: a folder; every target, number of trials and version has its own inside.
        trials: schedules tried per kernel.
        emulated: the device's times mean nothing, so its records are kept apart.
    """

    def __init__(
        self, records: Path, target: Any, trials: int, boards: Boards, link: Link, emulated: bool
    ) -> None:
        self.target, self.trials, self.boards, self.link = target, trials, boards, link
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

    def tune(self, module: Any) -> Any:
        """The records of all kernels of a module; those that are not known are tuned first.

        Raises:
            QuadranasError: no schedule of a kernel worked.
            DeviceLostError: no board is left; what was tuned is kept.
        """
        database = meta_schedule.database.JSONDatabase(work_dir=str(self.folder))
        done = self._done()
        kernels = {
            kernel_id(task.dispatched[0]): task
            for task in meta_schedule.relax_integration.extract_tasks(module, self.target)
            if not task.mod.attrs.get("tirx.is_scheduled", False)
        }
        for name, task in kernels.items():
            if name in done and best_s(database, task.dispatched[0], self.target) < FAILED_S:
                continue
            self._tune_kernel(task, database)
            done.append(name)
            write_json(self.folder / DONE, {"kernels": done})
        return database

    def _done(self) -> list[str]:
        """The kernels whose tuning came to its end."""
        path = self.folder / DONE
        return list(read_json(path, "tuning records")["kernels"]) if path.exists() else []

    def _tune_kernel(self, task: Any, database: Any) -> None:
        runner = BoardRunner(self.boards, self.min_repeat_ms)
        outcomes = Outcomes()
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
        with tempfile.TemporaryDirectory() as folder:
            meta_schedule.tune.tune_tasks(
                tasks=[context],
                task_weights=[1.0],
                work_dir=str(self.folder),
                max_trials_global=self.trials,
                num_trials_per_iter=min(self.trials, 64),
                builder=_builder(self.link, folder),
                runner=runner,
                database=database,
                cost_model="random",  # replay-trace asks none
                measure_callbacks=[meta_schedule.measure_callback.AddToDatabase(), outcomes],
                task_scheduler=meta_schedule.task_scheduler.RoundRobin(),
            )
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


def _silent() -> logging.Logger:
    logger = logging.getLogger("quadranas.tvm")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


def _builder(link: Link, folder: str) -> Any:
    def export(program: Any) -> str:
        handle, path = tempfile.mkstemp(".so", "kernel", folder)
        os.close(handle)
        program.export_library(path, fcompile=link)
        return path

    return meta_schedule.builder.LocalBuilder(max_workers=1, timeout_sec=BUILD_S, f_export=export)


@derived_object
class Outcomes(PyMeasureCallback):  # type: ignore[misc]
    """Counts the trials and keeps why they failed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.errors: Counter[str] = Counter()

    def apply(
        self,
        scheduler: Any,
        task: int,
        candidates: Sequence[Any],
        built: Sequence[Any],
        run: Sequence[Any],
    ) -> None:
        """Called by TVM after some trials."""
        self.count += len(candidates)
        for result in [*built, *run]:
            if result.error_msg:
                self.errors[str(result.error_msg)] += 1

    def most_common(self) -> str:
        """The error of most trials."""
        (error, _), *_ = self.errors.most_common(1) or [("no schedule was found", 0)]
        return error.strip()[-400:]


@derived_object
class Trial(PyRunnerFuture):  # type: ignore[misc]
    """A trial under way."""

    def __init__(self, future: "Future[Any]") -> None:
        super().__init__()
        self.future = future

    def done(self) -> bool:
        """Called by TVM."""
        return self.future.done()

    def result(self) -> Any:
        """Called by TVM."""
        return self.future.result()


@derived_object
class BoardRunner(PyRunner):  # type: ignore[misc]
    """Runs trials on whichever boards are free.

    TVM's own runners open a session per trial, wait for boards that are held, and know no server
    without a tracker.
    """

    def __init__(self, boards: Boards, min_repeat_ms: int) -> None:
        super().__init__()
        self.boards, self.min_repeat_ms = boards, min_repeat_ms
        self.lost: DeviceLostError | None = None
        self.pool = ThreadPoolExecutor(boards.found)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Called by TVM with what was built."""
        return [
            Trial(self.pool.submit(self._try, str(one.artifact_path), _tensors(one)))
            for one in inputs
        ]

    def _try(self, library: str, tensors: list[tuple[str, list[int]]]) -> Any:
        if self.lost is not None:
            return RunnerResult(None, str(self.lost))
        try:
            seconds = self.boards.call(
                "try_kernel",
                *(library, tensors, self.min_repeat_ms),
                expected_s=EXPECTED_S,
                attempts=ATTEMPTS,
            )
        except DeviceLostError as error:
            if self.boards.usable == 0:
                self.lost = error
            return RunnerResult(None, str(error))
        except QuadranasError as error:
            return RunnerResult(None, str(error))
        return RunnerResult(seconds, None)


def _tensors(candidate: Any) -> list[tuple[str, list[int]]]:
    """Type and shape of every argument, as plain data."""
    infos = [info.as_json() for info in candidate.args_info]
    return [(str(dtype), [int(size) for size in shape]) for _, dtype, shape in infos]
