"""The options that several commands share, each described once."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, only warnings.")]
DeviceName = Annotated[
    str, typer.Option("--device", help="cpu, vpu, gpu, or a YAML file of one's own.")
]
Budget = Annotated[str, typer.Option("--budget", help="Such as 30ms, 0.3s or 250us.")]
SpaceName = Annotated[str, typer.Option("--space", help="A space's name, or a YAML file.")]
TableFile = Annotated[
    Path | None, typer.Option("--table", help="This latency table, not the usual one.")
]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Folder or zip of images by class; digits if not given."),
]
Val = Annotated[str | None, typer.Option("--val", help="Folder or zip with the test images.")]
SkipCorrupt = Annotated[
    bool | None, typer.Option("--skip-corrupt", help="Leave corrupt images out, and count them.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Of everything random; default 0.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML with keys of a run's config.yaml.")
]
MaxParams = Annotated[int | None, typer.Option("--max-params", min=1, help="Most parameters.")]
MaxMacs = Annotated[
    int | None, typer.Option("--max-macs", min=1, help="Most multiply-accumulates.")
]
Confidence = Annotated[
    float | None,
    typer.Option(help="Probability that the measured latency keeps the budget, such as 0.95."),
]
Tolerance = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Measured excess that is no missed promise; default 0.05."),
]
Rpc = Annotated[str | None, typer.Option("--rpc", help="TVM RPC server, HOST:PORT.")]
RpcTracker = Annotated[
    str | None, typer.Option("--rpc-tracker", help="TVM RPC tracker, HOST:PORT.")
]
RpcKey = Annotated[str | None, typer.Option("--rpc-key", help="The boards' key at the tracker.")]
WorkerPython = Annotated[
    str | None,
    typer.Option("--worker-python", help="Python with openvino 2021.4.2, for a Myriad stick."),
]
Inspect = Annotated[
    bool | None,
    typer.Option("--inspect", help="Record distributions of the quadratic layers every epoch."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="A .safetensors file, not the run's own.")
]
Subject = Annotated[
    str, typer.Argument(help="An architecture file, a run folder, or a model's name.")
]
Run = Annotated[Path, typer.Argument(help="A search's run folder.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in options.items() if value is not None}


def command_line() -> str:
    """The command as it was given, for a table's header."""
    return shlex.join(["quadranas", *sys.argv[1:]])
