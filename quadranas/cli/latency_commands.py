"""The commands about devices and latency: what is known, how it is measured, what it predicts."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from quadranas.cli.console import print_json, print_prediction, print_result, reporting, say
from quadranas.cli.options import (
    DEVICE,
    DeviceName,
    Json,
    Quiet,
    Rpc,
    RpcKey,
    RpcTracker,
    SpaceName,
    TableFile,
    WorkerPython,
    command_line,
    given,
)
from quadranas.latency.runtimes import RUNTIMES

DEFAULT_ROUNDS = 40
Rounds = Annotated[
    int, typer.Option(min=2, help="How often everything is timed, in random order.")
]


def devices_command(
    names: Annotated[list[str] | None, typer.Argument(help="Devices; all if none.")] = None,
    as_json: Json = False,
) -> None:
    """Devices, their latency tables, and the runtimes installed here to measure with."""
    from quadranas.commands.survey import survey_devices

    result = survey_devices(names or [])
    if as_json:
        return print_json(result)
    for device in result.devices:
        threads = f", threads: {device.threads}" if device.threads else ""
        runtime = device.runtime or "not measured"
        say(f"{device.name}  {device.title}, {runtime}, {device.precision}{threads}")
        say(f"     tables: {', '.join(device.tables) or 'none'}")
        if device.expected_error:
            say(f"     analytic model; expected error {device.expected_error}")
    say(f"runtimes installed here: {', '.join(result.runtimes) or 'none'}")


def spaces_command(
    names: Annotated[list[str] | None, typer.Argument(help="Spaces; all if none.")] = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="Devices; all shipped if none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search spaces: size, MACs, and the latencies they reach per device."""
    from quadranas.commands.survey import survey_spaces
    from quadranas.latency.budget import format_ms

    result = survey_spaces(names or [], device or [])
    if as_json:
        return print_json(result)
    for known in result.spaces:
        say(
            f"{known.name}  {known.architectures:.3g} architectures, {known.min_macs / 1e6:.4g} "
            f"to {known.max_macs / 1e6:.4g} M MACs at {known.resolution} pixels"
        )
        for name, reachable in known.devices.items():
            latency = f"{format_ms(reachable.min_ms)} to {format_ms(reachable.max_ms)}"
            say(f"     {name:<5} {latency:<22} {reachable.summary}")


def build_lut_command(
    device: DeviceName,
    space: SpaceName = "quadranet-mobile",
    backend: Annotated[
        str | None,
        typer.Option(
            help=f"Runtime to measure with: {', '.join(RUNTIMES)}; fastest of those installed "
            "here; or analytic for the device's model. Default: analytic for a device with a "
            "model and no address, otherwise its own runtime.",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="On the device.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, tf32, fp16 or bf16.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per call.")] = None,
    tuning_trials: Annotated[
        int | None, typer.Option(min=0, help="TVM: schedules tried per kernel.")
    ] = None,
    rpc: Rpc = None,
    rpc_tracker: RpcTracker = None,
    rpc_key: RpcKey = None,
    worker_python: WorkerPython = None,
    output: Annotated[
        Path | None, typer.Option(help="Default: latency_tables/SPACE/DEVICE.json here.")
    ] = None,
    rounds: Rounds = DEFAULT_ROUNDS,
    only_missing: Annotated[
        bool, typer.Option("--only-missing", help="Keep the entries of the existing table.")
    ] = False,
    num_classes: Annotated[
        list[int] | None, typer.Option("--num-classes", min=1, help="Also price this head.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a device's latency table for a space; killed, it continues when called again."""
    from quadranas.commands.build_lut import build_lut
    from quadranas.latency.device import load_device
    from quadranas.measurement.timing import Plan
    from quadranas.space.space_file import load_space

    settings = given(
        threads=threads,
        precision=precision,
        batch_size=batch_size,
        tuning_trials=tuning_trials,
        rpc=rpc,
        rpc_tracker=rpc_tracker,
        rpc_key=rpc_key,
        worker_python=worker_python,
    )
    with reporting(quiet) as reporter:
        path, table = build_lut(
            load_space(space),
            load_device(device).configured(**settings),
            reporter=reporter,
            backend=backend,
            output=output,
            num_classes=num_classes or (),
            only_missing=only_missing,
            plan=Plan(num_rounds=rounds),
            command=command_line(),
        )
    header = table.header
    result = {
        "path": str(path),
        "device": header.device,
        "space": header.space,
        "entries": len(table.entries),
        "method": header.method,
        "summary": header.summary(),
    }
    print_result(result, as_json, f"{path}: {len(table.entries)} entries, {header.summary()}")


def validate_lut_command(
    device: DeviceName,
    space: SpaceName = "quadranet-mobile",
    table: TableFile = None,
    networks: Annotated[int, typer.Option(min=2, help="How many fresh networks.")] = 30,
    seed: Annotated[int, typer.Option(help="Another seed draws other networks.")] = 0,
    rounds: Rounds = DEFAULT_ROUNDS,
    rpc: Rpc = None,
    rpc_tracker: RpcTracker = None,
    rpc_key: RpcKey = None,
    worker_python: WorkerPython = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure fresh random networks against a table's predictions, and note the result in it."""
    from quadranas.commands.validate_lut import validate_lut
    from quadranas.latency.device import load_device
    from quadranas.measurement.timing import Plan
    from quadranas.space.space_file import load_space

    reach = given(rpc=rpc, rpc_tracker=rpc_tracker, rpc_key=rpc_key, worker_python=worker_python)
    with reporting(quiet) as reporter:
        result = validate_lut(
            load_space(space),
            load_device(device).configured(**reach),
            reporter,
            path=table,
            num_networks=networks,
            seed=seed,
            plan=Plan(num_rounds=rounds),
            command=command_line(),
        )
    print_result(result, as_json, f"{result['summary']}\nplot {result['plot']}")


def merge_lut_command(
    tables: Annotated[list[Path], typer.Argument(help="Two or more tables of one device.")],
    output: Annotated[Path, typer.Option(help="The merged table.")],
    as_json: Json = False,
) -> None:
    """Put the entries of several tables of one device and space into one."""
    from quadranas.commands.merge_lut import merge_lut

    merged = merge_lut(tables, output, command=command_line())
    result = {"path": str(output), "entries": len(merged.entries)}
    print_result(result, as_json, f"{output}: {len(merged.entries)} entries")


def predict_command(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    device: DeviceName,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Of the input, where the file leaves it open.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Latency of any ONNX file, from a device's analytic model."""
    from quadranas.commands.predict import predict as run_predict
    from quadranas.latency.device import load_device

    result = run_predict(model, load_device(device), resolution=resolution)
    if as_json:
        return print_json(result)
    print_prediction(result)


COMMANDS: dict[str, Callable[..., None]] = {
    "devices": devices_command,
    "spaces": spaces_command,
    "build-lut": build_lut_command,
    "validate-lut": validate_lut_command,
    "merge-lut": merge_lut_command,
    "predict": predict_command,
}
