"""The command that exports a network as a bundle."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quadranas.cli.console import (
    check_promise,
    print_result,
    reporting,
)
from quadranas.cli.option_groups import REACH, taking
from quadranas.cli.options import (
    DATA,
    DEVICE,
    FILE,
    LIMITS,
    OUTPUT,
    AllowCommands,
    Data,
    Json,
    Model,
    Quiet,
    SkipCorrupt,
    TableFile,
    Threads,
    Tolerance,
    TuningTrials,
    Val,
    Weights,
    given,
)
from quadranas.cli.own_model_option import with_own_model
from quadranas.latency.runtimes import (
    REACH_SETTINGS,
    file_formats,
    files_of,
    opsets_in_words,
    precisions_in_words,
)

if TYPE_CHECKING:
    from quadranas.commands.export import ExportResult
    from quadranas.latency.device import ReachSettings


FileFormat = Annotated[
    str,
    typer.Option(
        "--format",
        help=f"Format of the file: {', '.join(file_formats())}.",
        rich_help_panel=FILE,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help=f"Precision of the file: fp32; also {precisions_in_words()}.",
        rich_help_panel=FILE,
    ),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        help="Input size in pixels. Default: the deployment resolution.",
        rich_help_panel=FILE,
    ),
]
Batch = Annotated[
    str,
    typer.Option(
        help="Number of images per call, or dynamic for any number.", rich_help_panel=FILE
    ),
]
Opset = Annotated[
    int | None,
    typer.Option(help=f"ONNX opset, {opsets_in_words()}.", rich_help_panel=FILE),
]
ExportDevice = Annotated[
    str | None,
    typer.Option(
        help="Target device: a name, a YAML file, or the folder of a run. Default: the device "
        "the architecture was derived for, otherwise host.",
        rich_help_panel=DEVICE,
    ),
]
Images = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of validation images to check the file with. Default: 1000, or 16 on a "
        "board.",
        rich_help_panel=DATA,
    ),
]
Untrained = Annotated[
    bool,
    typer.Option(
        "--untrained",
        help="Export random weights, to time a file without training.",
        rich_help_panel=DATA,
    ),
]
ExportBudget = Annotated[
    str | None,
    typer.Option(
        help="Latency budget, such as 30ms; exit with code 3 if it is missed.",
        rich_help_panel=LIMITS,
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Largest allowed drop of accuracy for int8, in percentage points (default 1).",
        rich_help_panel=LIMITS,
    ),
]
Bundle = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the bundle. Default: exports/FORMAT-PRECISION in the run folder.",
        rich_help_panel=OUTPUT,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace an existing bundle.", rich_help_panel=OUTPUT),
]


@with_own_model
@taking(REACH)
def export_command(
    model: Model,
    file_format: FileFormat = "onnx",
    precision: Precision = "fp32",
    resolution: Resolution = None,
    batch: Batch = "1",
    opset: Opset = None,
    device: ExportDevice = None,
    table: TableFile = None,
    threads: Threads = None,
    tuning_trials: TuningTrials = None,
    allow_commands: AllowCommands = False,
    data: Data = None,
    val: Val = None,
    skip_corrupt: SkipCorrupt = None,
    images: Images = None,
    weights: Weights = None,
    untrained: Untrained = False,
    budget: ExportBudget = None,
    tolerance: Tolerance = None,
    max_drop: MaxDrop = None,
    output: Bundle = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    reach: "ReachSettings",
) -> None:
    """Export a verified, timed model file with manifest, model card and inference script."""
    from quadranas.commands.export import export

    options = given(
        resolution=resolution,
        batch=batch,
        opset=opset,
        table=table,
        threads=threads,
        tuning_trials=tuning_trials,
        **reach,
        allow_commands=allow_commands,
        data=data,
        val=val,
        skip_corrupt=skip_corrupt,
        images=images,
        budget=budget,
        tolerance=tolerance,
        max_drop=max_drop,
    )
    with reporting(quiet) as reporter:
        result = export(
            model,
            format=file_format,
            precision=precision,
            device=device,
            output=output,
            weights=weights,
            untrained=untrained,
            force=force,
            reporter=reporter,
            **options,
        )
    print_result(result, as_json, _export_text, _next_run)
    check_promise(result.missed)


def _export_text(result: "ExportResult") -> str:
    from quadranas.data.description import describe_skipped

    skipped = describe_skipped(result.num_skipped)
    batch = f", {result.batch_size} images a call" if result.batch_size > 1 else ""
    lines = [
        f"{result.path}: {result.size_bytes / 2**20:.2f} MiB, {result.precision}, input "
        f"{result.resolution} pixels{batch}, {sum(result.operators.values())} operators",
        f"{result.runtime} against PyTorch on {result.num_images} images{skipped}: largest "
        f"error {result.max_abs_error:.2e} ({result.relative_error:.1e} of the largest logit), "
        f"top-1 agreement {result.top1_agreement:.1%}",
    ]
    if result.accuracy is not None:
        lines.append(f"accuracy {result.accuracy:.2%}, in PyTorch {result.accuracy_pytorch:.2%}")
    if result.kept:
        lines.append(f"layers in higher precision: {', '.join(result.kept)}")
    lines.append(_latency_text(result))
    if result.image is None:
        lines.append(f"label images with: {_run_command(result, 'IMAGE...')}")
    return "\n".join(lines)


def _next_run(result: "ExportResult") -> str:
    """The command that labels a test image; empty if none is a file."""
    return "" if result.image is None else _run_command(result, shlex.quote(str(result.image)))


def _run_command(result: "ExportResult", image: str) -> str:
    """The command that labels images on the device that a bundle was checked on."""
    from quadranas.deployment.bundle import read_manifest
    from quadranas.runs.next_command import proposed

    given = read_manifest(result.bundle).device.reach.given
    reach = {key: value for key, value in given.items() if key in REACH_SETTINGS}
    native = files_of(result.format).native
    options = proposed(**reach, allow_native_code=native).removeprefix("quadranas")
    return f"{proposed('run', result.bundle)} {image}{options}"


def _latency_text(result: "ExportResult") -> str:
    from quadranas.latency.table import dropped_text

    predicted = f"not predicted: {result.not_predicted}"
    if result.predicted_ms is not None:
        predicted = f"predicted {result.predicted_ms:.4g} ms on {result.device}"
    if result.measured_ms is None:
        return f"latency: {predicted}; not measured: {result.not_measured}"
    text = f"latency: {predicted}; measured {result.measured_ms:.4g} ms on {result.measured_on}"
    text += f" (spread of the calls {result.spread:.0%}"
    if result.measured_p50_ms is not None:
        text += f", p50 {result.measured_p50_ms:.4g} ms, p95 {result.measured_p95_ms:.4g} ms"
    if result.measured_dropped:
        text += f", {dropped_text(result.measured_dropped)}"
    text += ")"
    if result.deviation is not None:
        text += f" ({result.deviation:+.1%})"
    if result.fp32_ms is not None:
        change = result.measured_ms / result.fp32_ms - 1
        text += (
            f"; {result.precision} is {abs(change):.0%} {'slower' if change > 0 else 'faster'} "
            f"than fp32 here ({result.fp32_ms:.4g} ms)"
        )
    return text


COMMANDS: dict[str, Callable[..., None]] = {
    "export": export_command,
}
"""The commands of this file by name."""
