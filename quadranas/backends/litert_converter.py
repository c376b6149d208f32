"""Writing LiteRT files with litert-torch, in another process.

litert-torch 0.10.0 needs older versions of packages that TVM and pydantic need newer ones of
(typing-extensions below 4.13), so no environment has all of them. Networks therefore pass as
programs of `torch.export` to a worker (`litert_converter_main.py`), whose interpreter is this one
or that of an environment of its own. It also keeps JAX and its messages out of this process.
"""

import json
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quadranas.backends.interface import ClosedOnExit, reason_of
from quadranas.backends.worker_process import RefusedError, WorkerLostError, WorkerProcess
from quadranas.errors import MissingExtraError, QuadranasError

SCRIPT = Path(__file__).with_name("litert_converter_main.py")

VARIABLE = "QUADRANAS_LITERT_PYTHON"
"""The environment variable that names the interpreter; never anything in a file."""

RELEASE = "0.10.0"
HOW_TO_INSTALL = (
    "Make an environment for it: python -m venv litert && litert/bin/pip install "
    f"litert-torch=={RELEASE} torch=={torch.__version__.partition('+')[0]}; then: "
    f"export {VARIABLE}=$PWD/litert/bin/python"
)

TIMEOUT_S = 1800.0
"""A large network takes minutes on a busy machine."""


class NamedEnds(nn.Module):
    """A network whose input and output have names: a file's are called the same."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Shapes: those of the network."""
        return {"logits": self.network(images)}


class Converter(ClosedOnExit):
    """A worker with litert-torch, started when it is first needed."""

    def __init__(self) -> None:
        self.python = str(Path(os.environ.get(VARIABLE) or sys.executable).expanduser())
        self._folder: Path | None = None
        self._worker: WorkerProcess | None = None

    def versions(self) -> dict[str, str]:
        """The versions of litert-torch and its packages; empty without it."""
        try:
            found: dict[str, str] = self._ask("hello")["versions"]
        except (QuadranasError, RefusedError):
            return {}
        return found if "litert-torch" in found else {}

    def convert(
        self, network: nn.Module, shape: tuple[int, ...], *, half_weights: bool = False
    ) -> bytes:
        """A network in evaluation mode as a file.

        Raises:
            QuadranasError: it cannot be converted, or litert-torch is not installed.
        """
        name = type(network).__name__
        program, target = self._path("network.pt2"), self._path("network.tflite")
        try:
            torch.export.save(exported(network, shape), program)
        except Exception as error:  # PyTorch raises many kinds
            raise unconvertible(name, reason_of(error)) from error
        self._order(name, "convert", program=str(program), target=str(target))
        if half_weights:
            self._order(name, "cast", source=str(target), target=str(target))
        return target.read_bytes()

    def quantize(
        self, source: Path, images: Sequence[NDArray[np.float32]], operators: Sequence[str]
    ) -> bytes:
        """A file with the weights and inputs of some operators in 8 bits.

        Args:
            images: inputs of the file, for the ranges of values.
            operators: names of the outputs of these operators.

        Raises:
            QuadranasError: ai-edge-quantizer cannot quantise it.
        """
        calibration, names = self._path("images.npy"), self._path("operators.json")
        target = self._path("quantised.tflite")
        np.save(calibration, np.stack(images))
        names.write_text(json.dumps(operators), encoding="utf-8")
        self._order(
            *(str(source), "quantize"),
            source=str(source),
            target=str(target),
            images=str(calibration),
            operators=str(names),
        )
        return target.read_bytes()

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _path(self, name: str) -> Path:
        """A file in a folder of this object, which goes when it does."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="quadranas-litert-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder / name

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer of the worker.

        Raises:
            RefusedError: it cannot fulfil the request.
            QuadranasError: it cannot be started, or did not answer; the next request starts
                another one.
        """
        try:
            if self._worker is None:
                self._worker = WorkerProcess([self.python, "-I", str(SCRIPT)], self._path("log"))
            return self._worker.ask(do, TIMEOUT_S, **arguments)
        except OSError as error:
            raise QuadranasError(
                f"{self.python} cannot be started to convert for LiteRT: "
                f"{error.strerror or error}",
                HOW_TO_INSTALL,
            ) from error
        except WorkerLostError as loss:
            self._worker = None
            raise QuadranasError(
                f"{self.python} was lost while it converted for LiteRT: {loss}",
                "Check that enough memory is free, then repeat the command.",
            ) from loss

    def _order(self, name: str, do: str, **arguments: str) -> None:
        """Have the worker write a file.

        Raises:
            QuadranasError: it cannot.
        """
        try:
            self._ask(do, **arguments)
        except RefusedError as refusal:
            raise self._explained(name, refusal) from refusal

    def _explained(self, name: str, refusal: RefusedError) -> QuadranasError:
        if str(refusal).startswith("ModuleNotFoundError"):
            return MissingExtraError(
                f"converting for LiteRT needs litert-torch, which {self.python} does not have: "
                f"{refusal}",
                HOW_TO_INSTALL,
            )
        return unconvertible(name, str(refusal))


def exported(network: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """A network as a program whose operations are named after their layers.

    A file shows the names, such as `blocks.stage1_entry.patch_stem.conv/conv2d`.
    """
    with torch.no_grad():
        program = torch.export.export(NamedEnds(network), (), {"images": torch.zeros(*shape)})
    for node in program.graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        if stack:
            path = stack[-1][0].removeprefix("network").removeprefix(".")
            operation = str(node.target).partition(".")[2].partition(".")[0]
            # litert-torch writes the type of every module around an operation: here its name.
            node.meta["nn_module_stack"] = {"": ("", f"{path}/{operation}".lstrip("/"))}
    return program


def unconvertible(name: str, reason: str) -> QuadranasError:
    """The error for a network or file that cannot be written for LiteRT."""
    return QuadranasError(f"{name} cannot be converted for LiteRT: {reason}")
