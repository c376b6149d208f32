"""The commands that hand a network over, and use what was handed over."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from quadranas.cli.console import print_result, reporting, warn
from quadranas.cli.options import (
    Data,
    Json,
    Model,
    Quiet,
    Rpc,
    RpcKey,
    RpcTracker,
    SkipCorrupt,
    TableFile,
    Tolerance,
    Val,
    Weights,
    WorkerPython,
    given,
)
from quadranas.errors import PromiseMissedError, QuadranasError


def export_command(
    model: Model,
    file_format: Annotated[
        str, typer.Option("--format", help="onnx, openvino, tvm, torch or executorch.")
    ] = "onnx",
    precision: Annotated[
        str, typer.Option(help="fp32; fp16 with openvino; int8 with onnx and openvino.")
    ] = "fp32",
    device: Annotated[
        str | None,
        typer.Option(help="It is meant for; default: what it was derived for, else host."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The bundle, a new folder; default: RUN/exports/FORMAT-PRECISION."),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Of the input; default: the deployment resolution.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Images per call, or dynamic for any number.")] = "1",
    opset: Annotated[
        int | None, typer.Option(help="Of ONNX, 13 to 23; default: 18, for a Myriad 13.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Points of accuracy that int8 may cost; default: 1."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Exit with 3 if the latency is over it, such as 30ms.")
    ] = None,
    tolerance: Tolerance = None,
    data: Data = None,
    val: Val = None,
    skip_corrupt: SkipCorrupt = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Validation images to check with; default: 1000, 16 on a board."),
    ] = None,
    weights: Weights = None,
    untrained: Annotated[
        bool,
        typer.Option("--untrained", help="Random weights, for a file to time and not to use."),
    ] = False,
    table: TableFile = None,
    threads: Annotated[int | None, typer.Option(min=1, help="On the device.")] = None,
    tuning_trials: Annotated[
        int | None, typer.Option(min=0, help="TVM: schedules tried per kernel.")
    ] = None,
    rpc: Rpc = None,
    rpc_tracker: RpcTracker = None,
    rpc_key: RpcKey = None,
    worker_python: WorkerPython = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a network as a bundle for a runtime: checked there against PyTorch, and timed."""
    from quadranas.commands.export import export as run_export
    from quadranas.deployment.target import ExportOptions
    from quadranas.latency.budget import parse_budget
    from quadranas.runs.config import DataConfig, load_config
    from quadranas.runs.stored_network import open_network

    opened = open_network(model, weights)
    if untrained and opened.weights is not None:
        raise QuadranasError(
            f"--untrained is for networks without weights; {model} has them",
            "Leave it out, or name the run's architecture.json.",
        )
    if not untrained:
        opened.require_weights("; or --untrained for a file to time and not to use")
    options = ExportOptions(
        file_format=file_format,
        precision=precision,
        device=device,
        settings=given(
            threads=threads,
            tuning_trials=tuning_trials,
            rpc=rpc,
            rpc_tracker=rpc_tracker,
            rpc_key=rpc_key,
            worker_python=worker_python,
        ),
        opset=opset,
        batch=_batch(batch),
        resolution=resolution,
        max_drop=max_drop,
        budget_ms=parse_budget(budget) if budget else None,
        num_images=images,
        table=table,
        **given(tolerance=tolerance),
    )
    folder = Path(f"{opened.architecture.name}-{file_format}-{precision}")
    if opened.folder is not None:
        folder = opened.folder / "exports" / f"{file_format}-{precision}"
    images_of = given(data=data, val=val, skip_corrupt=skip_corrupt)
    with reporting(quiet) as reporter:
        result = run_export(
            *(opened, output or folder, options, reporter),
            data=load_config(DataConfig, None, **images_of),
            force=force,
        )
    print_result(result, as_json, _export_text(result))
    if result["missed"]:
        warn(f"promise missed: {result['missed']}")
        raise typer.Exit(PromiseMissedError.exit_code)


def _batch(text: str) -> int | None:
    """The number of images per call; none for any."""
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise QuadranasError(f"--batch must be dynamic or a number of at least 1, got {text!r}")
    return int(text)


def _export_text(result: dict[str, Any]) -> str:
    kept = result["kept"]
    num_operators = sum(result["operators"].values())
    size = result["batch_size"]
    batch = f", {size} images a call" if size > 1 else ""
    lines = [
        f"{result['path']}: {result['size_bytes'] / 2**20:.2f} MiB, {result['precision']}, input "
        f"{result['resolution']} pixels{batch}, {num_operators} operators",
        f"{result['runtime']} against PyTorch on {result['num_images']} images: largest error "
        f"{result['max_abs_error']:.2e} ({result['relative_error']:.1e} of the largest logit), "
        f"top-1 agreement {result['top1_agreement']:.1%}",
    ]
    if result["accuracy"] is not None:
        lines.append(
            f"accuracy {result['accuracy']:.2%}, in PyTorch {result['accuracy_pytorch']:.2%}"
        )
    if kept:
        lines.append(f"in higher precision: {', '.join(kept)}")
    predicted = _latency_text(result, "predicted", result["device"])
    measured = _latency_text(result, "measured", result["measured_on"])
    deviation = result["deviation"]
    beside = f" ({deviation:+.1%})" if deviation is not None else ""
    lines.append(f"latency: {predicted}; {measured}{beside}")
    if result["fp32_ms"] is not None:
        ratio = result["fp32_ms"] / result["measured_ms"]
        lines[-1] += f"; fp32 {result['fp32_ms']:.4g} ms in the same rounds, {ratio:.2f} x as long"
    lines.append(f"next: quadranas run {shlex.quote(result['bundle'])} IMAGE")
    return "\n".join(lines)


def _latency_text(result: dict[str, Any], how: str, device: str | None) -> str:
    ms = result[f"{how}_ms"]
    if ms is None:
        return f"not {how}: {result[f'not_{how}']}"
    spread = f" (calls spread by {result['spread']:.0%})" if how == "measured" else ""
    return f"{how} {ms:.4g} ms on {device}{spread}"


def run_command(
    bundle: Annotated[Path, typer.Argument(help="The folder that export wrote.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    top: Annotated[
        int | None, typer.Option(help="Labels per image; default: 5, or all classes.")
    ] = None,
    rpc: Rpc = None,
    rpc_tracker: RpcTracker = None,
    rpc_key: RpcKey = None,
    worker_python: WorkerPython = None,
    as_json: Json = False,
) -> None:
    """Label images with an exported bundle, in its runtime, and time it."""
    from quadranas.commands.run import run_bundle

    reach = given(rpc=rpc, rpc_tracker=rpc_tracker, rpc_key=rpc_key, worker_python=worker_python)
    result = run_bundle(bundle, images, top=top, **reach)
    print_result(result, as_json, _run_text(result))


def _run_text(result: dict[str, Any]) -> str:
    """A block per image, then what ran it."""
    from quadranas.latency.budget import format_ms

    at_export = result["measured_ms"]
    beside = f", {format_ms(at_export)} at export" if at_export is not None else ""
    lines = []
    for answer in result["results"]:
        taken = "not timed" if answer["ms"] is None else format_ms(answer["ms"])
        lines.append(f"{answer['image']}: {taken}{beside}")
        for found in answer["labels"]:
            lines.append(f"  {found['probability']:7.2%}  {found['label']}")
    size = result["batch_size"]
    call = "image" if size == 1 else f"call, the image {size} times"
    lines.append(f"{result['runtime']} on {result['hardware']}, {result['precision']}, per {call}")
    if at_export is not None:
        lines.append(f"at export: {result['measured_on']}")
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(lines)


COMMANDS: dict[str, Callable[..., None]] = {
    "export": export_command,
    "run": run_command,
}
"""The commands of this file by name."""
