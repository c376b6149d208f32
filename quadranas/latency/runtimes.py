"""The facts about every runtime, which are read without importing any of them.

A runtime is its backend module, its entry in `RUNTIMES`, its extra in `setup.cfg` and its pin in
`constraints.txt`. Device files, `export`, manifests, inference scripts, `devices`, help texts and
the contract tests read the entry.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from quadranas.errors import nearest
from quadranas.extras import require_extra

Precision = Literal["fp32", "fp16", "int8"]

FASTEST = "fastest"
"""Name for the fastest runtime installed on this machine, found by timing."""

ONNX_OPSETS = range(13, 24)
"""The opsets that networks can be written in."""

ONNX_OPSET = 18
"""The oldest opset that PyTorch's newer exporter writes, which most runtimes can read."""

LOCAL_SETTINGS = ("threads", "tuning_trials")
REACH_USAGE = {
    "rpc": "--rpc HOST:PORT",
    "rpc_tracker": "--rpc-tracker HOST:PORT with --rpc-key KEY",
    "worker_python": "--worker-python PATH",
    "ssh": "--ssh USER@HOST",
}
"""The options that name how to reach a device, for hints."""

REACH_SETTINGS = ("rpc", "rpc_tracker", "rpc_key", "worker_python", "ssh", "python")
"""Settings of a device that a command line may replace."""


@dataclass(frozen=True, kw_only=True)
class ScriptCode:
    """Python expressions for the three gaps of a bundle's inference script.

    Args:
        imports: packages to import.
        model: opens the file named by `artefact`, ready to run.
        logits: the logits of the first image of `images`, shape (num_classes,).
    """

    imports: str
    model: str
    logits: str


@dataclass(frozen=True, kw_only=True)
class RuntimeFiles:
    """The files that a runtime writes and reads.

    Args:
        format: name of the format, as in `--format onnx`.
        artefact: name of the file in a bundle.
        package: name on PyPI of the package that runs the files.
        precisions: precisions of the weights and activations in a file.
        free_batch: whether a file can take any number of images per call.
        opsets: ONNX opsets that the runtime reads; empty for other formats.
        opset: the default opset.
        interchange: whether runtimes of other formats can read the files too.
        reads: formats of other runtimes whose files the runtime can time too.
        native: whether a file is machine code, which can do anything that its user can.
        refused: formats with similar names that the runtime does not read, each with the reason
            and the next step.
        script: how an inference script runs a file; `None` where the script of another runtime
            with the same format is used.
    """

    format: str
    artefact: str
    package: str
    precisions: tuple[Precision, ...] = ("fp32",)
    free_batch: bool = False
    opsets: range = range(0)
    opset: int | None = None
    interchange: bool = False
    reads: tuple[str, ...] = ()
    native: bool = False
    refused: tuple[tuple[str, str, str], ...] = ()
    script: ScriptCode | None = None

    @property
    def suffix(self) -> str:
        """The file name suffix."""
        return Path(self.artefact).suffix

    @property
    def options(self) -> dict[str, bool]:
        """The optional fields of `Conversion`, and whether a file can have each."""
        return {
            "dynamic_batch": self.free_batch,
            "opset": bool(self.opsets),
            "half_weights": "fp16" in self.precisions,
        }


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The facts about a runtime.

    Args:
        title: name in messages.
        backend: module and class of its backend, as in `package.module:Class`.
        imports: packages that the backend imports.
        extra: the extra that installs them; empty where nothing needs to be installed.
        found_by: package whose presence shows that this machine can measure with the runtime;
            empty where no package can show that.
        settings: names from `LOCAL_SETTINGS` and `REACH_SETTINGS` that apply to it.
        needs_reach: the setting that is required to open a device; empty if none is.
        for_host: whether `fastest` considers it.
        other_hardware: whether it needs hardware that a machine may lack.
        over_ssh: precisions that it runs in on a board that is reached by ssh; empty if it cannot
            run there. `backends/worker_main.py` has a class for it.
        runs: formats of other runtimes that its devices can run.
        reports_times: whether its latencies are numbers that another program prints, so that
            their unit has to be checked.
        files: `None` for a runtime without files.
    """

    title: str
    backend: str
    imports: tuple[str, ...] = ()
    extra: str = ""
    found_by: str = ""
    settings: tuple[str, ...] = ("threads",)
    needs_reach: str = ""
    for_host: bool = False
    other_hardware: bool = False
    over_ssh: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    reports_times: bool = False
    files: RuntimeFiles | None = None

    @property
    def is_installed(self) -> bool:
        """Whether this machine can measure with it, judged by the installed packages."""
        return bool(self.found_by) and find_spec(self.found_by) is not None

    @property
    def own_files(self) -> RuntimeFiles:
        """`files`, of a runtime that is known to have some."""
        assert self.files is not None
        return self.files

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that its devices can run."""
        own = (self.files.format,) if self.files is not None else ()
        return (*own, *self.runs)

    @property
    def reach(self) -> tuple[str, ...]:
        """The settings that describe how to reach a device."""
        names = (*self.settings, "ssh", "python") if self.over_ssh else self.settings
        return tuple(name for name in names if name in REACH_SETTINGS)

    def require(self) -> None:
        """Check that its packages are installed.

        Raises:
            MissingExtraError: one is missing; names the extra.
        """
        require_extra(self.extra, *self.imports)


RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": Runtime(
        title="ONNX Runtime",
        backend="quadranas.backends.onnxruntime:OnnxRuntimeBackend",
        imports=("onnx", "onnxscript", "onnxruntime"),
        extra="onnxruntime",
        found_by="onnxruntime",
        for_host=True,
        over_ssh=("fp32", "tf32", "fp16"),
        files=RuntimeFiles(
            format="onnx",
            artefact="model.onnx",
            package="onnxruntime",
            precisions=("fp32", "int8"),
            free_batch=True,
            opsets=ONNX_OPSETS,
            opset=ONNX_OPSET,
            interchange=True,
            script=ScriptCode(
                imports="onnxruntime",
                model="onnxruntime.InferenceSession(artefact)",
                logits='model.run(None, {"images": images})[0][0]',
            ),
        ),
    ),
    "openvino": Runtime(
        title="OpenVINO",
        backend="quadranas.backends.openvino:OpenVinoBackend",
        imports=("openvino", "onnx", "onnxscript"),
        extra="openvino",
        found_by="openvino",
        for_host=True,
        over_ssh=("fp32", "fp16", "bf16"),
        files=RuntimeFiles(
            format="openvino",
            artefact="model.xml",
            package="openvino",
            precisions=("fp32", "fp16", "int8"),
            free_batch=True,
            reads=("onnx",),
            script=ScriptCode(
                imports="openvino",
                model=(
                    'openvino.compile_model(artefact, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})'
                ),
                logits="model(images)[0][0]",
            ),
        ),
    ),
    "tvm": Runtime(
        title="TVM",
        backend="quadranas.backends.tvm:TvmBackend",
        imports=("tvm", "cloudpickle", "psutil"),
        extra="tvm",
        found_by="tvm",
        settings=("threads", "tuning_trials", "rpc", "rpc_tracker", "rpc_key"),
        files=RuntimeFiles(
            format="tvm",
            artefact="model.so",
            package="apache-tvm",
            native=True,
            script=ScriptCode(
                imports="tvm, tvm.relax",
                model=(
                    "tvm.relax.VirtualMachine(tvm.runtime.load_module(str(artefact)), tvm.cpu())"
                ),
                logits='model["main"](tvm.runtime.tensor(images)).numpy()[0]',
            ),
        ),
    ),
    "torch": Runtime(
        title="PyTorch",
        backend="quadranas.backends.pytorch:PyTorchBackend",
        found_by="torch",
        over_ssh=("fp32",),
        files=RuntimeFiles(
            format="torch",
            artefact="model.pt2",
            package="torch",
            free_batch=True,
            script=ScriptCode(
                imports="torch",
                model="torch.export.load(artefact).module()",
                logits="model(torch.from_numpy(images)).detach().numpy()[0]",
            ),
        ),
    ),
    "executorch": Runtime(
        title="ExecuTorch",
        backend="quadranas.backends.executorch:ExecuTorchBackend",
        imports=("executorch", "executorch.runtime"),
        extra="executorch",
        found_by="executorch",
        over_ssh=("fp32",),
        files=RuntimeFiles(
            format="executorch",
            artefact="model.pte",
            package="executorch",
            script=ScriptCode(
                imports="torch, executorch.runtime",
                model=(
                    "executorch.runtime.Runtime.get().load_program(artefact)"
                    '.load_method("forward")'
                ),
                logits="model.execute([torch.from_numpy(images)])[0].numpy()[0]",
            ),
        ),
    ),
    "litert": Runtime(
        title="LiteRT",
        backend="quadranas.backends.litert:LiteRtBackend",
        imports=("ai_edge_litert.interpreter",),
        extra="litert",
        found_by="ai_edge_litert",
        files=RuntimeFiles(
            format="litert",
            artefact="model.tflite",
            package="ai-edge-litert",
            precisions=("fp32", "fp16", "int8"),
            script=ScriptCode(
                imports="ai_edge_litert.interpreter as litert",
                model="litert.Interpreter(str(artefact)).get_signature_runner()",
                logits='model(images=images)["logits"][0]',
            ),
        ),
    ),
    "cuda": Runtime(
        title="CUDA",
        backend="quadranas.backends.cuda:CudaBackend",
        settings=(),
        other_hardware=True,
        runs=("torch",),
    ),
    # Any program that times a file: the device says how it is called.
    "command": Runtime(
        title="command",
        backend="quadranas.backends.command:CommandBackend",
        runs=("onnx", "openvino", "torch", "executorch", "litert"),
        reports_times=True,
    ),
    # The last OpenVINO with a plugin for the Myriad; it runs in another Python.
    "openvino2021": Runtime(
        title="OpenVINO 2021.4",
        backend="quadranas.backends.openvino2021:OpenVino2021Backend",
        imports=("onnx",),
        extra="myriad",
        settings=("threads", "worker_python"),
        needs_reach="worker_python",
        files=RuntimeFiles(
            format="onnx",
            artefact="model.onnx",
            package="openvino==2021.4.2",
            opsets=range(13, 14),
            opset=13,
            refused=(
                (
                    "openvino",
                    "OpenVINO 2021.4 does not read the files of newer OpenVINO releases",
                    "Export ONNX, which it reads: --format onnx",
                ),
            ),
        ),
    ),
}
"""Every runtime by the name that device files and `--backend` use."""


def file_formats() -> dict[str, str]:
    """Every file format, with the name of the runtime that runs its files on this machine."""
    formats: dict[str, str] = {}
    for name, runtime in RUNTIMES.items():
        if runtime.files is not None:
            formats.setdefault(runtime.files.format, name)
    return formats


def files_of(file_format: str) -> RuntimeFiles:
    """The facts about the files of a format."""
    return RUNTIMES[file_formats()[file_format]].own_files


def precisions_in_words() -> str:
    """The formats with other precisions than fp32, for help texts and hints."""
    formats: dict[str, list[str]] = {}
    for name in file_formats():
        for precision in files_of(name).precisions:
            formats.setdefault(precision, []).append(name)
    return ", ".join(
        f"{precision} with {' and '.join(names)}"
        for precision, names in formats.items()
        if precision != "fp32"
    )


def opsets_in_words() -> str:
    """The opsets that can be written, for help texts."""
    defaults = [
        f"{runtime.files.opset} for {runtime.title}"
        for runtime in RUNTIMES.values()
        if runtime.files is not None and runtime.files.opset is not None
    ]
    return f"{ONNX_OPSETS[0]} to {ONNX_OPSETS[-1]} (default: {', '.join(defaults)})"


def check_name(kind: str, name: str, accepted: Iterable[str]) -> str:
    """Check a name in a file.

    Raises:
        ValueError: it is not accepted; suggests the nearest name that is.
    """
    names = list(accepted)
    if name not in names:
        raise ValueError(f"unknown {kind}; accepted: {', '.join(names)}{nearest(name, names)}")
    return name


def current_name(runtime: object, *, target: object = None, worker: object = None) -> object:
    """The current name of a runtime.

    Version 0.1.0 wrote `openvino` for a Myriad too. Its devices are recognised by their target or
    by the interpreter that drives them.

    Args:
        target: the device in the runtime's terms.
        worker: the interpreter, or anything else that shows that there was one.
    """
    is_myriad = isinstance(target, str) and target.partition(".")[0] == "MYRIAD"
    return "openvino2021" if runtime == "openvino" and (is_myriad or worker) else runtime
