"""TVM: compile and tune networks for this machine's processor, or that of boards behind RPC.

Written for TVM 0.27 with apache-tvm-ffi 0.1.14.post1 (0.1.15.post2 crashes in MetaSchedule).
"""

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from quadranas.backends.interface import (
    ClosedOnExit,
    Conversion,
    ConvertedFile,
    Provenance,
)
from quadranas.backends.lowering import lower
from quadranas.backends.tvm_import import import_network
from quadranas.backends.tvm_library import check_library, count_kernels
from quadranas.backends.tvm_linker import export, find_linker, machine_of, make_link
from quadranas.backends.tvm_program import TvmProgram
from quadranas.backends.tvm_reach import find_place
from quadranas.backends.tvm_reader import FILES, Facts, build_reader, judge, read_here
from quadranas.backends.tvm_worker import Boards, Worker
from quadranas.errors import DeviceLostError, QuadranasError
from quadranas.files import write_atomically
from quadranas.latency.device import Device
from quadranas.latency.runtimes import RUNTIMES

if TYPE_CHECKING:
    from quadranas.backends.tvm_tuning import Tuner

FACTS = RUNTIMES["tvm"]
HANG_S = 60.0
"""Time without an answer, beyond the expected time of a call, after which a board is lost."""
UPLOAD_BYTES_PER_S = 1e6
"""The slowest expected upload."""


def make_target(device: Device) -> Any:
    """TVM's target of a device; this machine's processor if the device names none.

    Raises:
        QuadranasError: TVM does not support it.
    """
    import tvm

    wanted = device.target
    if wanted is None:
        wanted = {"kind": "llvm", "mcpu": str(tvm.target.codegen.llvm_get_system_cpu())}
    try:
        if isinstance(wanted, str):
            wanted = json.loads(wanted) if wanted.startswith("{") else {"kind": wanted}
        if not isinstance(wanted, dict) or wanted.get("kind") != "llvm":
            raise ValueError("it must be of kind 'llvm'")
        target = tvm.target.Target({"num-cores": device.threads or 1} | wanted)
    except Exception as error:  # TVM raises many kinds
        raise QuadranasError(
            f"device {device.name}: TVM accepts no target {device.target!r}: "
            f"{str(error).strip().splitlines()[-1]}",
            "Name one as a mapping, such as "
            "{kind: llvm, mtriple: aarch64-linux-gnu, mcpu: cortex-a76, num-cores: 1}.",
        ) from error
    cores = int(target.attrs["num-cores"])
    if device.threads not in (None, cores):
        raise QuadranasError(
            f"device {device.name}: threads is {device.threads} and num-cores of its target "
            f"{cores}",
            "Write the same number for both.",
        )
    return target


class TvmBackend(ClosedOnExit):
    """A processor, on this machine or on boards behind a TVM RPC server or tracker.

    Args:
        records: folder for the results of tuning; kernels in it are not tuned again.
        hang_s: time without an answer after which a board counts as lost.

    Raises:
        MissingExtraError: TVM is not installed.
        QuadranasError: the precision or target is not supported, or linker or board are missing.
    """

    lowering = ("fold_batch_norm", "fold_layer_scale")

    def __init__(self, device: Device, records: Path, *, hang_s: float = HANG_S) -> None:
        FACTS.require()
        if device.precision != "fp32":
            raise QuadranasError(
                f"device {device.name}: with TVM the precision is fp32, got {device.precision}",
                "Write precision: fp32 in the device's file.",
            )
        self.device = device
        self.target = make_target(device)
        self.triple = str(self.target.attrs.get("mtriple", "")) if device.target else ""
        self.command = find_linker(self.triple)
        self.link = make_link(self.command)
        self.folder = tempfile.TemporaryDirectory(prefix="quadranas-tvm-")
        self.compiling, self.greeting = threading.Lock(), threading.Lock()
        self.facts: Facts | None = None
        self.num_programs = 0
        self.report: Callable[[str], None] = lambda text: None
        self.boards: Boards | None = None
        self.tuner: Tuner | None = None
        try:
            self._open(records, hang_s)
        except BaseException:
            self.close()
            raise

    def _open(self, records: Path, hang_s: float) -> None:
        place = find_place(self.device.reach)
        if place is None and machine_of(self.triple) != machine_of(""):
            raise QuadranasError(
                f"device {self.device.name}: its target is {machine_of(self.triple)}, "
                f"this machine is {machine_of('')}",
                "Give the address of its board with --rpc HOST:PORT, or in your own device file: "
                "reach: {rpc: 'HOST:PORT'}.",
            )
        self.facts = read_here() if place is None else None
        self.boards = Boards(place, int(self.target.attrs["num-cores"]), hang_s, self._greet)
        self.max_parallel = self.boards.found
        if self.device.tuning_trials:
            self.tuner = self._make_tuner(records)

    def _make_tuner(self, records: Path) -> "Tuner":
        from quadranas.backends.tvm_tuning import Tuner

        assert self.boards is not None
        trials, emulated = self.device.tuning_trials, bool(self.emulator)
        return Tuner(
            *(records, self.target, trials, self.boards, self.link),
            emulated=emulated,
            report=lambda text: self.report(text),
        )

    def _greet(self, board: Worker) -> None:
        """Identify a board, and check that it is of the same kind as the others."""
        if find_place(self.device.reach) is None:
            return
        with self.greeting:
            reader = Path(self.folder.name) / "reader.so"
            if not reader.exists():
                export(build_reader(self.target), reader, self.link)
            try:
                contents = board.call("read", (str(reader), FILES), HANG_S)
            except QuadranasError as error:
                raise QuadranasError(
                    f"device {self.device.name}: its board cannot run programs compiled for "
                    f"{self.target}: {error.message}",
                    "Correct the target, above all its mtriple.",
                ) from error
            facts = judge(contents, machine_of(self.triple))
            if self.facts is None:
                self.facts = facts
        if (facts.hardware, facts.emulator) != (self.facts.hardware, self.facts.emulator):
            raise QuadranasError(
                f"device {self.device.name}: the boards under its key differ: "
                f"{self.facts.hardware} and {facts.hardware}",
                "Register boards of different kinds under different keys.",
            )

    @property
    def emulator(self) -> str:
        """Why the device counts as emulated; empty for a real device."""
        return self.facts.emulator if self.facts is not None else ""

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> TvmProgram:
        """See `Backend`.

        Raises:
            QuadranasError: TVM cannot compile it, or no schedule of a kernel worked.
            DeviceLostError: tuning lost the last board; tuned kernels are kept.
        """
        path = self._new_library()
        self._build(network, input_shape, path)
        return self._program(path, input_shape)

    def convert(self, network: nn.Module, conversion: Conversion, path: Path) -> ConvertedFile:
        """See `FileBackend`: a shared library (.so) for the device's processor, weights included.

        Raises:
            QuadranasError: as for `compile`, or the conversion is not for a fixed shape in fp32.
            DeviceLostError: as for `compile`.
        """
        conversion.check(FACTS)
        library = self._new_library()
        self._build(network, conversion.input_shape, library)
        write_atomically(path, library.read_bytes())
        library.unlink()
        return ConvertedFile(path=path, passes=self.lowering)

    def load(self, path: Path, input_shape: Sequence[int]) -> TvmProgram:
        """See `FileBackend`."""
        check_library(path, machine_of(self.triple))
        # Boards keep libraries under their names, so each program needs another name.
        library = self._new_library()
        shutil.copyfile(path, library)
        program = self._program(library, input_shape)
        try:
            program.run(torch.zeros(*input_shape))
        except DeviceLostError:
            raise
        except QuadranasError as error:
            raise QuadranasError(
                f"{path} does not run with inputs of {tuple(input_shape)}: {error.message}",
                "Convert the network for this shape.",
            ) from error
        return program

    def count_operators(self, path: Path) -> dict[str, int]:
        """See `FileBackend`: counts kernels, which the network may call more than once."""
        return count_kernels(path)

    def _program(self, library: Path, input_shape: Sequence[int]) -> TvmProgram:
        why = f"device {self.device.name} is emulated ({self.emulator})" if self.emulator else ""
        return TvmProgram(self.call, library, tuple(input_shape), why)

    def _new_library(self) -> Path:
        with self.compiling:
            self.num_programs += 1
            return Path(self.folder.name) / f"program{self.num_programs}.so"

    def _build(self, network: nn.Module, input_shape: Sequence[int], path: Path) -> None:
        import tvm
        from tvm import relax

        with self.compiling:  # TVM's compiler is not thread-safe
            module = import_network(lower(network, self.lowering), input_shape, self.target)
            records = self.tuner.tune(module) if self.tuner is not None else nullcontext()
            with self.target, records, tvm.transform.PassContext(opt_level=3):
                if self.tuner is not None:
                    module = relax.transform.MetaScheduleApplyDatabase()(module)
                export(tvm.compile(module, self.target), path, self.link)

    def call(self, method: str, library: Path, *rest: object, expected_s: float = 0.0) -> Any:
        """Call a method of `Board` for a program on some board, which may load it first."""
        assert self.boards is not None
        expected_s += library.stat().st_size / UPLOAD_BYTES_PER_S
        return self.boards.call(method, str(library), *rest, expected_s=expected_s)

    def provenance(self) -> Provenance:
        """See `Backend`."""
        assert self.facts is not None
        trials = self.device.tuning_trials
        tuning = {"tuning": "untuned"}
        if trials:
            from quadranas.backends.tvm_tuning import STRATEGY

            tuning = {"tuning": "tuned", "tuning_trials": str(trials), "tuning_strategy": STRATEGY}
        return Provenance(
            runtime=f"TVM {version('apache-tvm')}",
            hardware=self.facts.hardware,
            versions={name: version(name) for name in ("apache-tvm", "apache-tvm-ffi", "torch")},
            settings={"target": str(self.target), **tuning, **self.facts.settings},
            emulated=bool(self.emulator),
        )

    def close(self) -> None:
        """Release the boards. Programs cannot be used after that."""
        if self.tuner is not None:
            self.tuner.close()
        if self.boards is not None:
            self.boards.close()
        self.folder.cleanup()
