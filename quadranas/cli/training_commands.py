"""The commands that train, test and describe networks."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quadranas.cli.console import (
    INTERRUPT_CODE,
    INTERRUPTED,
    accuracy_text,
    print_json,
    print_result,
    reporting,
    say,
    shown,
)
from quadranas.cli.option_groups import TRAINING_KEYS, taking
from quadranas.cli.options import (
    DATA,
    OUTPUT,
    TRAINING,
    Accelerator,
    ConfigFile,
    Data,
    Json,
    Model,
    OptionalModel,
    Precision,
    Quiet,
    Resume,
    Run,
    RunFolder,
    SkipCorrupt,
    Val,
    Weights,
    given,
)
from quadranas.cli.own_model_option import with_own_model
from quadranas.errors import QuadranasError

if TYPE_CHECKING:
    from quadranas.commands.report import ReportResult


@with_own_model
@taking(TRAINING_KEYS)
def train(
    model: OptionalModel = None,
    weights: Weights = None,
    config: ConfigFile = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of passes over the training images. Default: 40, 60 or 150, depending on "
            "the number of images.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    output: RunFolder = None,
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    keys: Mapping[str, Any],
) -> None:
    """Train a network, from its weights if it has any, otherwise from scratch."""
    from quadranas.commands.train import train as run_train
    from quadranas.runs.config import TrainConfig, load_config
    from quadranas.runs.next_command import export_command

    whole = load_config(TrainConfig, config, **given(epochs=epochs), **keys)
    with reporting(quiet) as reporter:
        result = run_train(
            model, whole, output=output, resume=resume, weights=weights, reporter=reporter
        )
    print_result(
        result,
        as_json,
        lambda found: f"{accuracy_text(found)}\nrun {found.run}, report {found.report_path}",
        lambda found: export_command(found.run),
    )


@with_own_model
def evaluate(
    model: Model,
    data: Data = None,
    val: Val = None,
    skip_corrupt: SkipCorrupt = None,
    weights: Weights = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Image size in pixels. Default: the deployment resolution of the network.",
            rich_help_panel=DATA,
        ),
    ] = None,
    accelerator: Accelerator = None,
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a trained network on the test images."""
    from quadranas.commands.evaluate import evaluate as run_evaluate
    from quadranas.data.description import describe_skipped

    result = run_evaluate(
        model,
        data=data,
        val=val,
        weights=weights,
        skip_corrupt=skip_corrupt,
        resolution=resolution,
        **given(accelerator=accelerator, precision=precision),
    )
    print_result(
        result,
        as_json,
        lambda found: (
            f"test accuracy {found.accuracy:.2%} at {found.resolution} pixels on "
            f"{found.num_images} images{describe_skipped(found.num_skipped)}"
            f"{_trained_at(found.trained_resolution, found.resolution)}"
        ),
    )


def report(
    run: Run,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Another run for a second page that puts both side by side. Repeat it for more.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Serve the page on this machine instead of writing it, and refresh it while the "
            "run goes on; Ctrl-C ends it.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Port of the page that is watched. Default: any that is free.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the report of a run as one self-contained HTML page."""
    from quadranas.commands.report import report as run_report

    if watch:
        _check_alone(compare=bool(compare), json=as_json)
        return _watch(run, port or 0)
    _check_port(port)
    result = run_report(run, compare=compare or ())
    print_result(result, as_json, _report_text)


def _check_alone(**others: bool) -> None:
    """Refuse options that do not go with --watch."""
    for name, is_given in others.items():
        if is_given:
            raise QuadranasError(
                f"--watch and --{name} are given; a page that is watched is the report of one "
                "run, and has no result",
                f"Omit --{name}, or --watch.",
            )


def _check_port(port: int | None) -> None:
    if port is not None:
        raise QuadranasError("--port is given without --watch", "Add --watch, or omit --port.")


def _watch(run: Path, port: int) -> None:
    """Serve the report of a run until Ctrl-C."""
    from quadranas.reports.watch import ReportServer

    with ReportServer(run, port) as server:
        # A thread of its own: the server would take Ctrl-C for the failure of a request
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            say(f"{server.url} (Ctrl-C ends it)")
            sys.stdout.flush()
            while True:
                time.sleep(60)
        except KeyboardInterrupt:
            if INTERRUPT_CODE.get() != INTERRUPTED:  # terminated
                raise
        finally:
            server.shutdown()


def _report_text(result: "ReportResult") -> str:
    """The pages that were written."""
    return "\n".join(str(page) for page in (result.report, result.comparison) if page)


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Show this recipe: a name or a YAML file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the recipes, which are the defaults of search and train, or show one."""
    from quadranas.commands.recipes import recipes as list_recipes
    from quadranas.files import dump_yaml

    result = list_recipes(name)
    if as_json:
        return print_json(result)
    for known, recipe in shown(result).recipes.items():
        say(f"{known}  {recipe.description}")
        if name is not None:
            say(dump_yaml(recipe.model_dump(mode="json", exclude={"description"})).rstrip())


def _trained_at(trained: int | None, tested: int) -> str:
    return "" if trained in (None, tested) else f"; the network was trained at {trained} pixels"


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "eval": evaluate,
    "report": report,
    "recipes": recipes,
}
"""The commands of this file by name."""
