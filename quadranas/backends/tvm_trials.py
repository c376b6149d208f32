"""Trials of schedules: each is built in another process, run on a board, and counted."""

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.builder import BuilderResult, PyBuilder
from tvm.s_tir.meta_schedule.measure_callback import PyMeasureCallback
from tvm.s_tir.meta_schedule.runner import PyRunner, PyRunnerFuture, RunnerResult
from tvm.support.popen_pool import MapResult, PopenPoolExecutor, StatusKind

from quadranas.backends.tvm_linker import Link
from quadranas.backends.tvm_worker import Boards
from quadranas.errors import DeviceLostError, QuadranasError

BUILD_S = 60.0
BUILDS_PER_PROCESS = 200
"""TVM's compiler leaks memory, so its process is replaced after this many builds."""
MIN_REPEAT_MS = 50
ATTEMPTS = 2
"""A schedule that breaks two boards counts as failed, so that it does not break the others."""
EXPECTED_S = 10.0


@derived_object
class KernelBuilder(PyBuilder):  # type: ignore[misc]
    """Builds schedules in a process that can be killed when one takes too long.

    TVM's own builder (0.27) starts two processes per kernel and imports all tensor intrinsics in
    each: 16 s.
    """

    def __init__(self, link: Link) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="quadranas-kernels-")
        folder = self.folder.name

        def build(module: Any, target: Any) -> str:  # nested, so that the whole function is sent
            from tvm.driver import build as build_program
            from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

            plain = RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module)
            own = tempfile.mkdtemp(dir=folder)  # TVM removes this folder
            path = os.path.join(own, os.path.basename(own) + ".so")  # noqa: PTH118, PTH119
            build_program(plain, target=target).export_library(path, fcompile=link)
            return path

        self.build_one = build
        self.pool = PopenPoolExecutor(
            max_workers=1, timeout=BUILD_S, maximum_process_uses=BUILDS_PER_PROCESS
        )

    def build(self, inputs: Sequence[Any]) -> list[Any]:
        """Called by TVM with scheduled kernels."""
        build_one = self.build_one
        jobs = [(one.mod, one.target) for one in inputs]
        results = self.pool.map_with_error_catching(lambda job: build_one(*job), jobs)
        return [_built(result) for result in results]

    def close(self) -> None:
        """End the process and remove its files."""
        self.pool.shutdown()
        self.folder.cleanup()


def _built(result: MapResult) -> Any:
    if result.status == StatusKind.COMPLETE:
        return BuilderResult(result.value, None)
    if result.status == StatusKind.TIMEOUT:
        return BuilderResult(None, f"compiling took more than {BUILD_S:.0f} s")
    return BuilderResult(None, str(result.value))


@derived_object
class Outcomes(PyMeasureCallback):  # type: ignore[misc]
    """Counts the trials and records why they failed."""

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
        """The most frequent error."""
        (error, _), *_ = self.errors.most_common(1) or [("no schedule was found", 0)]
        return error.strip()[-400:]


@derived_object
class Trial(PyRunnerFuture):  # type: ignore[misc]
    """A trial in progress."""

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

    TVM's own runners open a session per trial, wait for boards in use, and need a tracker.
    """

    def __init__(self, boards: Boards, min_repeat_ms: int) -> None:
        super().__init__()
        self.boards, self.min_repeat_ms = boards, min_repeat_ms
        self.lost: DeviceLostError | None = None
        self.pool = ThreadPoolExecutor(boards.found)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Called by TVM with the built schedules."""
        return [
            Trial(self.pool.submit(self._try, str(one.artifact_path), _tensors(one)))
            for one in inputs
        ]

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()

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
