"""The commands that search for networks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from quadranas.cli.console import (
    check_promise,
    follows,
    network_line,
    print_result,
    reporting,
    shown,
)
from quadranas.cli.fronts_table import show_fronts
from quadranas.cli.option_groups import NETWORK_LIMITS, TRAINING_KEYS, taking
from quadranas.cli.options import (
    DEVICE,
    OUTPUT,
    TRAINING,
    AllowCommands,
    Budget,
    Candidates,
    ConfigFile,
    Json,
    OptionalBudget,
    OptionalDevice,
    Quiet,
    Resume,
    RunFolder,
    Seed,
    TableFile,
    given,
)
from quadranas.cli.own_model_option import with_own_model

OptionalSpace = Annotated[
    str | None,
    typer.Option(
        help="Search space: a name or a YAML file. Default: quadranet-mobile.",
        rich_help_panel=DEVICE,
    ),
]
DeviceOrRun = Annotated[
    str,
    typer.Option(
        help="Target device: a name that `quadranas devices` lists, a YAML file, or the folder of "
        "a run.",
        rich_help_panel=DEVICE,
    ),
]
Init = Annotated[
    str | None,
    typer.Option(
        "--init",
        help="Pre-trained network to start from: a run folder, a file of weights or timm:NAME; "
        "own-model, if your own model is trained.",
        rich_help_panel=TRAINING,
    ),
]
TrainResolution = Annotated[
    int | None,
    typer.Option(
        help="Image size during training, in pixels. Default: the median size of the images, "
        "but at most the deployment resolution of the space.",
        rich_help_panel=TRAINING,
    ),
]


@with_own_model
@taking(TRAINING_KEYS, NETWORK_LIMITS)
def search(
    device: OptionalDevice = None,
    space: OptionalSpace = None,
    table: TableFile = None,
    allow_commands: AllowCommands = False,
    config: ConfigFile = None,
    init: Init = None,
    train_resolution: TrainResolution = None,
    budget: OptionalBudget = None,
    candidates: Candidates = None,
    output: RunFolder = None,
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    keys: Mapping[str, Any],
) -> None:
    """Find, train and test the best network within a latency budget."""
    from quadranas.commands.search import search as run_search
    from quadranas.runs.config import SearchConfig, load_config
    from quadranas.runs.next_command import export_command

    options = given(
        device=device,
        budget=budget,
        space=space,
        table=table,
        init=init,
        train_resolution=train_resolution,
        candidates=candidates,
    )
    whole = load_config(SearchConfig, config, **options, **keys)
    with reporting(quiet) as reporter:
        result = run_search(
            whole,
            output=output,
            resume=resume,
            allow_commands=allow_commands,
            reporter=reporter,
        )
    print_result(
        result,
        as_json,
        lambda found: f"{network_line(found)}\nrun {found.run}, report {found.report_path}",
        lambda found: export_command(found.run),
    )
    check_promise(result.missed)


@with_own_model
@taking(NETWORK_LIMITS)
def derive(
    run: Annotated[Path, typer.Argument(help="Run folder of a search.")],
    *,
    device: DeviceOrRun,
    table: TableFile = None,
    allow_commands: AllowCommands = False,
    budget: Budget,
    candidates: Candidates = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="New folder. Default: RUN/derived/DEVICE-BUDGET.", rich_help_panel=OUTPUT
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    limits: Mapping[str, Any],
) -> None:
    """Decode a trained supernet again for any device and budget."""
    from quadranas.commands.derive import derive as run_derive
    from quadranas.runs.next_command import train_command

    with reporting(quiet) as reporter:
        result = run_derive(
            run,
            device=device,
            budget=budget,
            output=output,
            table=table,
            allow_commands=allow_commands,
            reporter=reporter,
            **given(candidates=candidates),
            **limits,
        )
    print_result(
        result,
        as_json,
        lambda found: f"{network_line(found)}\nfolder {found.run}",
        lambda found: train_command(found.run),
    )
    check_promise(result.missed)


@with_own_model
@taking(NETWORK_LIMITS)
def explore(
    run: Annotated[Path, typer.Argument(help="Run folder of a search.")],
    *,
    device: DeviceOrRun,
    table: TableFile = None,
    allow_commands: AllowCommands = False,
    strategy: Annotated[
        str,
        typer.Option(
            help="How networks are chosen: evolution, gates, nsga2, random, reinforce or tpe.",
            rich_help_panel=TRAINING,
        ),
    ],
    trials: Annotated[
        int,
        typer.Option(
            min=1,
            max=1_000_000,
            help="Number of networks to judge at most.",
            rich_help_panel=TRAINING,
        ),
    ] = 100,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Journal file or database URL through which processes share the trials of nsga2 "
            "or tpe.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    seed: Seed = None,
    budget: Budget,
    output: Annotated[
        Path | None,
        typer.Option(
            help="New folder. Default: RUN/explored/STRATEGY-DEVICE-BUDGET.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    limits: Mapping[str, Any],
) -> None:
    """Let a strategy choose among the sub-networks of a trained supernet."""
    from quadranas.commands.explore import explore as run_explore
    from quadranas.runs.next_command import train_command

    with reporting(quiet) as reporter:
        result = run_explore(
            run,
            strategy=strategy,
            device=device,
            budget=budget,
            trials=trials,
            storage=storage,
            output=output,
            table=table,
            allow_commands=allow_commands,
            reporter=reporter,
            **given(seed=seed),
            **limits,
        )
    print_result(
        result,
        as_json,
        lambda found: (
            f"{network_line(found)}\nbest of {found.trials} trials by {found.strategy}: "
            f"{found.inherited_accuracy:.2%} on held-out images with the supernet's weights\n"
            f"folder {found.run}"
        ),
        lambda found: train_command(found.run),
    )
    check_promise(result.missed)


@with_own_model
def pareto(
    run: Annotated[Path, typer.Argument(help="Run folder of a search.")],
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="Device, as for derive; may be repeated. Default: the device of the search.",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    points: Annotated[
        int,
        typer.Option(
            min=2,
            max=100,
            help="Number of budgets per device, from the fastest network to the slowest.",
            rich_help_panel=TRAINING,
        ),
    ] = 10,
    candidates: Annotated[
        int,
        typer.Option(
            min=1,
            max=100,
            help="Number of networks to judge for every budget.",
            rich_help_panel=TRAINING,
        ),
    ] = 4,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Judge networks over the budgets of devices: fronts of accuracy against latency."""
    from quadranas.commands.pareto import pareto as run_pareto

    with reporting(quiet) as reporter:
        result = run_pareto(
            run, device=device or (), points=points, candidates=candidates, reporter=reporter
        )
    if as_json or follows():
        return print_result(result, as_json, lambda found: str(found.path))
    show_fronts(shown(result))


COMMANDS: dict[str, Callable[..., None]] = {
    "search": search,
    "derive": derive,
    "explore": explore,
    "pareto": pareto,
}
"""The commands of this file by name."""
