"""The commands about the latency of model files: predicting and timing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from quadranas.cli.console import (
    print_json,
    print_result,
    print_table,
    reporting,
    say,
    shown,
)
from quadranas.cli.options import (
    DATA,
    MEASUREMENT,
    AllowCommands,
    DeviceName,
    Json,
    Quiet,
    Threads,
)

if TYPE_CHECKING:
    from quadranas.commands.predict import PredictResult
    from quadranas.commands.time import TimeResult

InputResolution = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Height and width of the input in pixels. Default: as in the file; required if "
        "the file leaves them open.",
        rich_help_panel=DATA,
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=SIZE,SIZE,...",
        help="Shape of an input, as in x=1,96,96,3. Needed for sizes that the file leaves "
        "open and that are not the height and width of an image. Can be repeated.",
        rich_help_panel=DATA,
    ),
]


def time_command(
    model: Annotated[
        Path, typer.Argument(help="A model file: .onnx, .xml, .pt2, .pte or .tflite.")
    ],
    device: DeviceName,
    threads: Threads = None,
    allow_commands: AllowCommands = False,
    resolution: InputResolution = None,
    inputs: InputShapes = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Number of rounds; each times the file and a reference. Default: 40.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time any model file on a device, in the same rounds as the networks of a table."""
    from quadranas.commands.time import time
    from quadranas.prediction.inputs import parse_inputs

    with reporting(quiet) as reporter:
        result = time(
            model,
            device=device,
            resolution=resolution,
            inputs=parse_inputs(inputs or ()),
            rounds=rounds,
            reporter=reporter,
            threads=threads,
            allow_commands=allow_commands,
        )
    print_result(result, as_json, _time_text)


def _time_text(result: "TimeResult") -> str:
    """The latency, how noisy it is, and the estimate."""
    from quadranas.errors import printable
    from quadranas.latency.budget import format_ms
    from quadranas.latency.table import dropped_text

    shapes = ", ".join("x".join(map(str, shape)) for shape in result.inputs.values())
    threads = f", threads: {result.threads}" if result.threads else ""
    text = (
        f"{printable(str(result.model))}: {format_ms(result.latency_ms)} for {shapes} on "
        f"{result.device} ({result.runtime}, {result.hardware}{threads})\n"
        f"{result.statistic}, {result.rounds} rounds; minimum {format_ms(result.minimum_ms)}, "
        f"p50 {format_ms(result.p50_ms)}, p95 {format_ms(result.p95_ms)}\n"
        f"noise {result.noise:.1%}, spread {result.spread:.1%}, {dropped_text(result.dropped)}"
    )
    text = "\n".join((text, *(f"note: {note}" for note in result.notes)))
    if result.predicted_ms is None or result.deviation is None:
        return f"{text}\nnot predicted: {result.not_predicted}"
    bound = "at least " if result.is_lower_bound else ""
    return (
        f"{text}\npredicted by the analytic model: {bound}{format_ms(result.predicted_ms)} "
        f"(measured {result.deviation:+.0%})"
    )


def predict_command(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    device: DeviceName,
    resolution: InputResolution = None,
    inputs: InputShapes = None,
    as_json: Json = False,
) -> None:
    """Predict the latency of any ONNX file with the analytic model of a device."""
    from quadranas.commands.predict import predict
    from quadranas.prediction.inputs import parse_inputs

    shapes = parse_inputs(inputs or ())
    result = predict(model, device=device, resolution=resolution, inputs=shapes)
    if as_json:
        return print_json(result)
    _print_prediction(shown(result))


def _print_prediction(result: "PredictResult") -> None:
    """Print the latency of each kernel launch, and highlight operators without a price."""
    table = Table(Column("operator", overflow="fold"), "fused", "kind", "MACs", "ms", "share")
    for operator in result.operators:
        share = operator.latency_ms / max(result.latency_ms, 1e-12)
        numbers = (f"{operator.macs:,}", f"{operator.latency_ms:.4f}", f"{share:.1%}")
        table.add_row(operator.name, _counted(operator.ops), operator.kind, *numbers)
    print_table(table)
    bound = "at least " if result.is_lower_bound else ""
    threads = f", threads: {result.threads}" if result.threads else ""
    inputs = ", ".join("x".join(map(str, shape)) for shape in result.inputs)
    say(
        f"{result.model}: {bound}{result.latency_ms:.4g} ms for {inputs} on {result.device}; "
        f"{result.macs / 1e6:.1f} M MACs, {len(result.operators)} operators\n"
        f"latency: {result.method} ({result.title}, {result.runtime}, {result.precision}{threads}"
        f"; expected error {result.expected_error})"
    )
    for note in result.notes:
        say(f"NOTE: {note}", style="bold")
    for missing in result.unpriced:
        names = ", ".join(missing.nodes[:3]) + (", ..." if missing.count > 3 else "")
        say(f"NOT PRICED: {missing.count} x {missing.op} ({names})", style="bold red")
    if result.unpriced:
        say(
            "The latency is a LOWER BOUND: operators without a price are missing from the sum.",
            style="bold red",
        )


def _counted(ops: Sequence[str]) -> str:
    """Operator types in order; repeated ones are listed once, with their number."""
    counts = {op: ops.count(op) for op in ops}
    return " ".join(f"{n} {op}" if n > 1 else op for op, n in counts.items())


COMMANDS: dict[str, Callable[..., None]] = {
    "predict": predict_command,
    "time": time_command,
}
