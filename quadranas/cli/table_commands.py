"""The commands about devices, spaces and their latency tables."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quadranas.cli.console import (
    command_line,
    print_json,
    print_result,
    reporting,
    say,
    shown,
)
from quadranas.cli.option_groups import REACH, SETTINGS, taking
from quadranas.cli.options import (
    DEVICE,
    MEASUREMENT,
    OUTPUT,
    AllowCommands,
    DeviceName,
    Json,
    Quiet,
    SpaceName,
    TableFile,
)
from quadranas.cli.own_model_option import with_own_model
from quadranas.latency.runtimes import RUNTIMES
from quadranas.measurement.plan import (
    DEFAULT_NETWORKS,
    MAX_RESIDUAL,
    MIN_NETWORKS,
    Plan,
)

if TYPE_CHECKING:
    from quadranas.commands.build_lut import BuildLutResult
    from quadranas.latency.device import DeviceSettings, ReachSettings

Rounds = Annotated[
    int,
    typer.Option(
        min=2,
        help="Number of rounds; each times every program once, in random order.",
        rich_help_panel=MEASUREMENT,
    ),
]
BackendName = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help=f"Runtime to measure with: {', '.join(RUNTIMES)}; fastest: the fastest of these; "
        "analytic: the model of the device. Default: analytic for a device with a model and no "
        "address, otherwise its own runtime.",
        rich_help_panel=DEVICE,
    ),
]
OnlyMissing = Annotated[
    bool,
    typer.Option(
        "--only-missing",
        help="Add missing entries to the existing table and keep the others.",
        rich_help_panel=MEASUREMENT,
    ),
]
OnlySuspect = Annotated[
    bool,
    typer.Option(
        "--only-suspect",
        help="Measure again only the suspect entries of a measurement that ended with an error.",
        rich_help_panel=MEASUREMENT,
    ),
]
MaxResidual = Annotated[
    float,
    typer.Option(
        "--max-residual",
        min=0.0,
        help="Upper limit on the residual of the calibration, as a fraction of the latency.",
        rich_help_panel=MEASUREMENT,
    ),
]
NumClasses = Annotated[
    list[int] | None,
    typer.Option(
        "--num-classes",
        min=1,
        help="Number of classes to add head entries for, besides 10, 100 and 1000. Needed for "
        "data with more than 1000 classes. Can be repeated.",
        rich_help_panel=MEASUREMENT,
    ),
]
TimesFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--times",
        help="CSV file with times that were taken by hand; makes the table of them. Can be "
        "repeated.",
        rich_help_panel=MEASUREMENT,
    ),
]
ProbesFolder = Annotated[
    Path | None,
    typer.Option(
        "--probes",
        help="New folder for the files of the table's networks and a times.csv to fill in by "
        "hand; nothing is measured.",
        rich_help_panel=OUTPUT,
    ),
]
SourceTable = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="TABLE|DEVICE",
        help="The table to start from: its file, or a device with a table for the space.",
        rich_help_panel=DEVICE,
    ),
]
MeasuredNetworks = Annotated[
    int,
    typer.Option(
        "--measure",
        min=MIN_NETWORKS,
        help="Number of whole networks to measure.",
        rich_help_panel=MEASUREMENT,
    ),
]
OutputTable = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="File of the table. Default: latency_tables/SPACE/DEVICE.json.",
        rich_help_panel=OUTPUT,
    ),
]


def devices_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Devices: names, YAML files, or folders of runs. Default: all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List devices, their latency tables, and the runtimes installed on this machine."""
    from quadranas.commands.survey import survey_devices

    result = survey_devices(names or [])
    if as_json:
        return print_json(result)
    result = shown(result)
    for device in result.devices:
        threads = f", threads: {device.threads}" if device.threads else ""
        runtime = device.runtime or "not measured"
        say(f"{device.name}  {device.title}, {runtime}, {device.precision}{threads}")
        say(f"     tables: {', '.join(device.tables) or 'none'}")
        model = f"analytic model of {device.modelled_runtime}; " if device.analytic else ""
        say(f"     {model}expected error: {device.expected_error}")
    say(f"runtimes installed here: {', '.join(result.runtimes) or 'none'}")


def spaces_command(
    names: Annotated[list[str] | None, typer.Argument(help="Search spaces. Default: all.")] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            help="Device to list latencies for. Can be repeated. Default: all shipped devices.",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List search spaces with their sizes, MACs and reachable latencies on each device."""
    from quadranas.commands.survey import survey_spaces
    from quadranas.latency.budget import format_ms

    result = survey_spaces(names or [], device or [])
    if as_json:
        return print_json(result)
    result = shown(result)
    for known in result.spaces:
        say(
            f"{known.name}  {known.architectures:.3g} architectures, {known.min_macs / 1e6:.4g} "
            f"to {known.max_macs / 1e6:.4g} M MACs at {known.resolution} pixels"
        )
        width = max(5, *map(len, known.devices))
        for name, reachable in known.devices.items():
            latency = f"{format_ms(reachable.min_ms)} to {format_ms(reachable.max_ms)}"
            say(f"     {name:<{width}} {latency:<22} {reachable.summary}")


@with_own_model
@taking(SETTINGS)
def build_lut_command(
    device: DeviceName,
    space: SpaceName = "quadranet-mobile",
    backend: BackendName = None,
    rounds: Rounds = Plan.num_rounds,
    only_missing: OnlyMissing = False,
    only_suspect: OnlySuspect = False,
    max_residual: MaxResidual = MAX_RESIDUAL,
    num_classes: NumClasses = None,
    times: TimesFiles = None,
    probes: ProbesFolder = None,
    output: OutputTable = None,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    settings: "DeviceSettings",
) -> None:
    """Build the latency table of a device for a space; an interrupted measurement resumes."""
    from quadranas.commands.build_lut import build_lut
    from quadranas.runs.next_command import search_command

    classes = num_classes or ()
    if probes is not None:
        return _write_probes(
            *(space, device, probes, output, only_missing, classes, times or ()),
            *(quiet, as_json, settings),
        )
    with reporting(quiet) as reporter:
        result = build_lut(
            space,
            device=device,
            backend=backend,
            output=output,
            only_missing=only_missing,
            only_suspect=only_suspect,
            max_residual=max_residual,
            num_classes=classes,
            rounds=rounds,
            times=times or (),
            reporter=reporter,
            command=command_line(),
            **settings,
        )
    print_result(
        result, as_json, _table_text, lambda made: search_command(made.path, space, device)
    )


def _write_probes(
    space: str,
    device: str,
    folder: Path,
    table: Path | None,
    only_missing: bool,
    num_classes: Sequence[int],
    times: Sequence[Path],
    quiet: bool,
    as_json: bool,
    settings: "DeviceSettings",
) -> None:
    """Write the files to time by hand."""
    from quadranas.commands.write_probes import write_probes
    from quadranas.errors import QuadranasError
    from quadranas.runs.next_command import proposed

    if times:
        raise QuadranasError(
            "--probes writes the files to time, and --times reads what came back",
            "Give one of them.",
        )
    with reporting(quiet) as reporter:
        result = write_probes(
            space,
            device=device,
            folder=folder,
            table=table,
            only_missing=only_missing,
            num_classes=num_classes,
            reporter=reporter,
            **settings,
        )
    words = ["build-lut", *(part for n in num_classes for part in ("--num-classes", n))]
    same = {"device": device, "space": space, "output": table, "only_missing": only_missing}
    print_result(
        result,
        as_json,
        lambda made: f"{made.folder}: {made.files} files to time, and {made.times} to fill in",
        lambda made: proposed(*words, **same, times=made.times),
    )


def _table_text(result: "BuildLutResult") -> str:
    text = f"{result.path}: {result.entries} entries, {result.summary}"
    return f"{text}\n{result.quality}" if result.quality else text


@with_own_model
@taking(REACH)
def validate_lut_command(
    device: DeviceName,
    space: SpaceName = "quadranet-mobile",
    table: TableFile = None,
    allow_commands: AllowCommands = False,
    networks: Annotated[
        int,
        typer.Option(
            min=2, help="Number of random networks to measure.", rich_help_panel=MEASUREMENT
        ),
    ] = 30,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the random networks.", rich_help_panel=MEASUREMENT),
    ] = 0,
    rounds: Rounds = Plan.num_rounds,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    reach: "ReachSettings",
) -> None:
    """Compare a latency table with measurements of random networks, and record the result."""
    from quadranas.commands.validate_lut import validate_lut

    with reporting(quiet) as reporter:
        result = validate_lut(
            space,
            device=device,
            table=table,
            networks=networks,
            seed=seed,
            rounds=rounds,
            reporter=reporter,
            command=command_line(),
            **reach,
            allow_commands=allow_commands,
        )
    print_result(result, as_json, lambda found: f"{found.summary}\nplot {found.plot}")


@taking(SETTINGS)
def calibrate_command(
    device: DeviceName,
    source: SourceTable,
    space: SpaceName = "quadranet-mobile",
    measure: MeasuredNetworks = DEFAULT_NETWORKS,
    rounds: Rounds = Plan.num_rounds,
    max_residual: MaxResidual = MAX_RESIDUAL,
    num_classes: NumClasses = None,
    times: TimesFiles = None,
    probes: ProbesFolder = None,
    output: OutputTable = None,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    settings: "DeviceSettings",
) -> None:
    """Make the latency table of a device of another one's, by measuring a few whole networks."""
    from quadranas.commands.calibrate import calibrate
    from quadranas.runs.next_command import proposed, search_command

    with reporting(quiet) as reporter:
        result = calibrate(
            space,
            device=device,
            source=source,
            networks=measure,
            times=times or (),
            probes=probes,
            output=output,
            max_residual=max_residual,
            num_classes=num_classes or (),
            rounds=rounds,
            reporter=reporter,
            command=command_line(),
            **settings,
        )
    if result.path is None:
        same = {"device": device, "space": space, "from": source, "output": output}
        return print_result(
            result,
            as_json,
            lambda made: f"{probes}: {made.networks} networks to time; fill in {made.times}",
            lambda made: proposed("calibrate", **same, times=made.times),
        )
    table = result.path
    then = search_command(table, space, device)
    print_result(result, as_json, lambda made: f"{table}: {made.summary}", lambda made: then)


def merge_lut_command(
    tables: Annotated[
        list[Path], typer.Argument(help="Two or more latency tables of one device and space.")
    ],
    output: Annotated[
        Path, typer.Option(help="File of the merged table.", rich_help_panel=OUTPUT)
    ],
    as_json: Json = False,
) -> None:
    """Merge several latency tables of one device and space into one."""
    from quadranas.commands.merge_lut import merge_lut

    result = merge_lut(tables, output=output, command=command_line())
    print_result(result, as_json, lambda made: f"{made.path}: {made.entries} entries")


COMMANDS: dict[str, Callable[..., None]] = {
    "devices": devices_command,
    "spaces": spaces_command,
    "build-lut": build_lut_command,
    "validate-lut": validate_lut_command,
    "calibrate": calibrate_command,
    "merge-lut": merge_lut_command,
}
