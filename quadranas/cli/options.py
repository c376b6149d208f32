"""The options that several commands share, each described once, and their panels in `--help`."""

from pathlib import Path
from typing import Annotated, Any

import typer

FILE = "File"
LAYERS = "Layers"
DEVICE = "Device"
MEASUREMENT = "Measurement"
DATA = "Data"
TRAINING = "Training"
LIMITS = "Limits"
OUTPUT = "Output"

PANELS = (FILE, LAYERS, DEVICE, MEASUREMENT, DATA, TRAINING, LIMITS, OUTPUT)
"""The panels of `--help`, in the order in which every command lists its options."""

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
Also = Annotated[
    list[str] | None,
    typer.Option(
        help="Budget on a further device, as DEVICE=BUDGET, which the network keeps too; may "
        "be repeated.",
        rich_help_panel=LIMITS,
    ),
]
MaxParams = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Upper limit on the number of parameters. Default: no limit.",
        rich_help_panel=LIMITS,
    ),
]
MaxMacs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Upper limit on the number of multiply-accumulates. Default: no limit.",
        rich_help_panel=LIMITS,
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option(
        help="Upper limit on the size of the weights in an exported fp32 file, such as 4MB. "
        "Default: no limit.",
        rich_help_panel=LIMITS,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        help="Upper limit on the peak memory of activations at inference, such as 512KiB. "
        "Default: no limit.",
        rich_help_panel=LIMITS,
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        help="Probability that the measured latency is within the budget, such as 0.95. "
        "Default: only the predicted latency has to be within it.",
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
