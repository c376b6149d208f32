"""The options that several commands share, each described once, and their panels in `--help`."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

DEVICE = "Device"
DATA = "Data"
TRAINING = "Training"
LIMITS = "Limits"
OUTPUT = "Output"
"""The panels of `--help`, in their order; every command lists its options in this order."""

MEASUREMENT = "Measurement"
"""The panel of options that decide what is timed, and how often."""

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", help="Show warnings only, no progress.", rich_help_panel=OUTPUT),
]
RunFolder = Annotated[
    Path | None,
    typer.Option(help="Run folder. Default: a new folder under runs/.", rich_help_panel=OUTPUT),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue an interrupted run.", rich_help_panel=OUTPUT),
]
_device = typer.Option(
    "--device",
    help="Target device: a name that `quadranas devices` lists, or a YAML file.",
    rich_help_panel=DEVICE,
)
DeviceName = Annotated[str, _device]
OptionalDevice = Annotated[str | None, _device]
SpaceName = Annotated[
    str,
    typer.Option("--space", help="Search space: a name or a YAML file.", rich_help_panel=DEVICE),
]
TableFile = Annotated[
    Path | None,
    typer.Option(
        "--table",
        help="Latency table to use instead of the default one.",
        rich_help_panel=DEVICE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of inference threads on the device. Default: as in the device's file.",
        rich_help_panel=DEVICE,
    ),
]
TuningTrials = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="TVM only: number of schedules to try per kernel. Default: as in the device's file.",
        rich_help_panel=DEVICE,
    ),
]
Rpc = Annotated[
    str | None,
    typer.Option(
        "--rpc", help="Address of a TVM RPC server, as HOST:PORT.", rich_help_panel=DEVICE
    ),
]
RpcTracker = Annotated[
    str | None,
    typer.Option(
        "--rpc-tracker", help="Address of a TVM RPC tracker, as HOST:PORT.", rich_help_panel=DEVICE
    ),
]
RpcKey = Annotated[
    str | None,
    typer.Option(
        "--rpc-key",
        help="Key under which the boards are registered at the tracker.",
        rich_help_panel=DEVICE,
    ),
]
WorkerPython = Annotated[
    str | None,
    typer.Option(
        "--worker-python",
        help="Python interpreter with openvino 2021.4.2, to drive a Myriad stick.",
        rich_help_panel=DEVICE,
    ),
]
Ssh = Annotated[
    str | None,
    typer.Option(
        "--ssh",
        help="Host that runs the networks, as USER@HOST or an alias of OpenSSH's configuration.",
        rich_help_panel=DEVICE,
    ),
]
RemotePython = Annotated[
    str | None,
    typer.Option(
        "--python",
        help="Python interpreter on that host with the runtime's package. Default: python3.",
        rich_help_panel=DEVICE,
    ),
]
REACH = {
    "rpc": Rpc,
    "rpc_tracker": RpcTracker,
    "rpc_key": RpcKey,
    "worker_python": WorkerPython,
    "ssh": Ssh,
    "python": RemotePython,
}
"""The options that say how a device is reached."""

AllowCommands = Annotated[
    bool,
    typer.Option(
        "--allow-commands",
        help="Run the commands in the device's file (runtime command); only for files that you "
        "trust.",
        rich_help_panel=DEVICE,
    ),
]
DevicePrecision = Annotated[
    str | None,
    typer.Option(
        help="Precision on the device: fp32, tf32, fp16, bf16 or int8. Default: as in the "
        "device's file.",
        rich_help_panel=DEVICE,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of images per call. Default: as in the device's file.",
        rich_help_panel=DEVICE,
    ),
]
SETTINGS = {
    "threads": Threads,
    "precision": DevicePrecision,
    "batch_size": BatchSize,
    "tuning_trials": TuningTrials,
    **REACH,
    "allow_commands": AllowCommands,
}
"""The options that replace keys of a device."""

Command = Callable[..., None]


def with_parameters(command: Command, parameters: Sequence[inspect.Parameter]) -> Command:
    """A command that shows these parameters to Typer, which makes its options of them."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def taking(options: Mapping[str, Any]) -> Callable[[Command], Command]:
    """Give a command options, which it gets as its last parameter, a mapping."""

    def decorate(command: Command) -> Command:
        *own, last = inspect.signature(command).parameters.values()
        added = [
            last.replace(name=name, default=None, annotation=kind)
            for name, kind in options.items()
        ]

        @functools.wraps(command)
        def with_options(**given: Any) -> None:
            taken = {name: given.pop(name) for name in options}
            command(**given, **{last.name: taken})

        return with_parameters(with_options, [*own, *added])

    return decorate


Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Folder or zip with one folder of images per class, tar shards or Parquet files. "
        "Default: the data of the run, otherwise the embedded digits.",
        rich_help_panel=DATA,
    ),
]
Val = Annotated[
    str | None,
    typer.Option(
        "--val",
        help="Folder or file with the test images. Default: those in --data.",
        rich_help_panel=DATA,
    ),
]
SkipCorrupt = Annotated[
    bool | None,
    typer.Option(
        "--skip-corrupt",
        help="Skip images that cannot be decoded, and report their number.",
        rich_help_panel=DATA,
    ),
]
Verify = Annotated[
    str | None,
    typer.Option(
        "--verify",
        help="Images to decode before training: ends (only those whose header and end leave "
        "doubt; the default), or full (all).",
        rich_help_panel=DATA,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Number of processes that decode training images that are not kept in memory. "
        "Default: by the number of cores.",
        rich_help_panel=DATA,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="File of weights (.safetensors or a torch file) to use instead of the run's own.",
        rich_help_panel=DATA,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Random seed (default 0).", rich_help_panel=TRAINING),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file with any of the keys of a run's config.yaml; other options override it.",
        rich_help_panel=TRAINING,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Defaults of all other keys: a name that `quadranas recipes` lists, or a YAML file. "
        "Default: chosen by the number of images.",
        rich_help_panel=TRAINING,
    ),
]
Inspect = Annotated[
    bool | None,
    typer.Option(
        "--inspect",
        help="Record distributions of the quadratic layers in every epoch.",
        rich_help_panel=TRAINING,
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        help="Network to learn from (distillation): a run folder, timm:NAME or an ONNX file.",
        rich_help_panel=TRAINING,
    ),
]
Holdout = Annotated[
    float | None,
    typer.Option(
        "--holdout",
        min=0,
        max=0.5,
        help="Share of the training images that is held out for the validation after every epoch "
        "(default 0).",
        rich_help_panel=TRAINING,
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep",
        help="Epoch whose weights are used: best (on the held-out images; the default if there "
        "are any) or last.",
        rich_help_panel=TRAINING,
    ),
]
Accelerator = Annotated[
    str | None,
    typer.Option(
        "--accelerator",
        help="Hardware to compute on: cpu, cuda, cuda:1, mps, xpu, or auto for the best there is "
        "(default).",
        rich_help_panel=TRAINING,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="fp32 (default), or mixed precision with bf16 or fp16.",
        rich_help_panel=TRAINING,
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile",
        help="Compile the network with torch.compile; a supernet is never compiled.",
        rich_help_panel=TRAINING,
    ),
]
_budget = typer.Option(
    "--budget", help="Latency budget, such as 30ms, 0.3s or 250us.", rich_help_panel=LIMITS
)
Budget = Annotated[str, _budget]
OptionalBudget = Annotated[str | None, _budget]
Tolerance = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Allowed overshoot of the measured latency, as a fraction of the budget "
        "(default 0.05).",
        rich_help_panel=LIMITS,
    ),
]
Candidates = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1000,
        help="Number of networks that the gates prefer most, of which the best one on held-out "
        "images is chosen (default 16, or all within the limits; 1: the gates choose).",
        rich_help_panel=LIMITS,
    ),
]
Model = Annotated[str, typer.Argument(help="Architecture file, run folder, or name of a model.")]
OptionalModel = Annotated[
    str | None,
    typer.Argument(
        help="Architecture file, run folder, or name of a model. Not needed with --resume."
    ),
]
Run = Annotated[Path, typer.Argument(help="Run folder of a search or a training.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in options.items() if value is not None}
