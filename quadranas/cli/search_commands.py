"""The commands that search, train and describe networks."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from quadranas.cli.console import (
    network_line,
    print_result,
    reporting,
    warn,
)
from quadranas.cli.options import (
    Budget,
    Confidence,
    ConfigFile,
    Data,
    DeviceName,
    Inspect,
    Json,
    MaxMacs,
    MaxParams,
    Model,
    Quiet,
    Resume,
    Run,
    Seed,
    SkipCorrupt,
    TableFile,
    Tolerance,
    Val,
    Weights,
    given,
)
from quadranas.errors import PromiseMissedError


def search(
    device: Annotated[
        str | None, typer.Option(help="cpu, vpu, gpu, or a YAML file of one's own.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Such as 30ms, 0.3s or 250us.")] = None,
    space: Annotated[str | None, typer.Option(help="Default: quadranet-mobile.")] = None,
    data: Data = None,
    val: Val = None,
    output: Annotated[
        Path | None, typer.Option(help="Run folder; default: a new one under runs/.")
    ] = None,
    resume: Resume = False,
    seed: Seed = None,
    config: ConfigFile = None,
    table: TableFile = None,
    train_resolution: Annotated[
        int | None, typer.Option("--train-resolution", help="Of the images, in pixels.")
    ] = None,
    max_params: MaxParams = None,
    max_macs: MaxMacs = None,
    confidence: Confidence = None,
    tolerance: Tolerance = None,
    skip_corrupt: SkipCorrupt = None,
    inspect: Inspect = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find, train and test the best network under a latency budget."""
    from quadranas.commands.search import search as run_search
    from quadranas.reports.run_report import write_report
    from quadranas.runs.config import SearchConfig, load_overrides
    from quadranas.runs.resume import can_resume, choose_folder, run_name

    overrides = load_overrides(config, SearchConfig) | given(
        device=device,
        budget=budget,
        space=space,
        data=data,
        val=val,
        seed=seed,
        table=str(table) if table else None,
        train_resolution=train_resolution,
        max_params=max_params,
        max_macs=max_macs,
        confidence=confidence,
        tolerance=tolerance,
        skip_corrupt=skip_corrupt,
        inspect=inspect,
    )
    folder = output or choose_folder(
        run_name(overrides),
        (lambda path: can_resume(SearchConfig, path, overrides)) if resume else None,
    )
    with reporting(quiet, "search", folder) as reporter:
        result = run_search(overrides, folder, reporter, resume=resume, source="command line")
        result["report"] = str(write_report(folder))
    print_result(
        result,
        as_json,
        f"{network_line(result)}\nrun {folder}, report {result['report']}\n"
        f"next: quadranas export {shlex.quote(str(folder))} --format onnx",
    )
    _check_promise(result)


def derive(
    run: Run,
    device: DeviceName,
    budget: Budget,
    output: Annotated[
        Path | None, typer.Option(help="New folder; default: RUN/derived/DEVICE-BUDGET.")
    ] = None,
    table: TableFile = None,
    max_params: MaxParams = None,
    max_macs: MaxMacs = None,
    confidence: Confidence = None,
    tolerance: Tolerance = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Decode a trained supernet again for any device and budget."""
    from quadranas.commands.derive import derive as run_derive
    from quadranas.latency.budget import parse_budget
    from quadranas.latency.contract import Contract
    from quadranas.latency.device import load_device

    terms = given(confidence=confidence, tolerance=tolerance)
    contract = Contract(budget_ms=parse_budget(budget), **terms)
    opened = load_device(device)
    folder = output or run / "derived" / f"{opened.name}-{''.join(budget.split())}"
    with reporting(quiet) as reporter:
        result = run_derive(
            run,
            opened,
            contract,
            folder,
            reporter,
            max_params=max_params,
            max_macs=max_macs,
            table=table,
            device_file=device,
        )
    print_result(
        result,
        as_json,
        f"{network_line(result)}\nfolder {folder}\n"
        f"next: quadranas train {shlex.quote(str(folder))}",
    )
    _check_promise(result)


def train(
    model: Model,
    data: Data = None,
    val: Val = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder; default: a new one under runs/.")
    ] = None,
    resume: Resume = False,
    seed: Seed = None,
    config: ConfigFile = None,
    weights: Weights = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.")] = None,
    skip_corrupt: SkipCorrupt = None,
    inspect: Inspect = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a network: from its weights if it has any, else from scratch."""
    from quadranas.commands.train import train as run_train
    from quadranas.runs.config import TrainConfig, load_overrides
    from quadranas.runs.resume import can_resume, choose_folder
    from quadranas.runs.stored_network import open_network

    overrides = load_overrides(config, TrainConfig) | given(
        data=data,
        val=val,
        seed=seed,
        epochs=epochs,
        skip_corrupt=skip_corrupt,
        inspect=inspect,
    )
    name = f"train-{Path(model).absolute().name.removesuffix('.json')}"

    def accept(path: Path) -> bool:
        return path.name.rpartition("-")[0] == name and can_resume(TrainConfig, path, overrides)

    folder = output or choose_folder(name, accept if resume else None)
    with reporting(quiet, "train", folder) as reporter:
        opened = open_network(model, weights)
        result = run_train(
            opened, overrides, folder, reporter, resume=resume, source="command line"
        )
    print_result(result, as_json, f"test accuracy {result['accuracy']:.2%}\nrun {folder}")


def evaluate(
    model: Model,
    data: Data = None,
    val: Val = None,
    weights: Weights = None,
    skip_corrupt: SkipCorrupt = None,
    as_json: Json = False,
) -> None:
    """Accuracy of a trained network on the test images."""
    from quadranas.commands.train import measure_accuracy
    from quadranas.runs.stored_network import open_network

    overrides = given(data=data, val=val, skip_corrupt=skip_corrupt)
    result = measure_accuracy(open_network(model, weights), overrides)
    line = f"test accuracy {result['accuracy']:.2%} on {result['num_images']} images"
    print_result(result, as_json, line)


def report(run: Run, as_json: Json = False) -> None:
    """Write a run's report: one self-contained HTML page."""
    from quadranas.reports.run_report import write_report

    path = write_report(run)
    print_result({"run": str(run), "report": str(path)}, as_json, str(path))


def _check_promise(result: dict[str, Any]) -> None:
    """Leave with the exit code of a missed promise if a result is one; it has been printed."""
    from quadranas.latency.contract import missed_budget

    missed = missed_budget(
        *(result["budget_ms"], result.get("tolerance", 0.0)),
        predicted_ms=result["predicted_ms"],
        measured_ms=result["measured_ms"],
    )
    if missed:
        warn(f"promise missed: {missed}")
        raise typer.Exit(PromiseMissedError.exit_code)


COMMANDS: dict[str, Callable[..., None]] = {
    "search": search,
    "derive": derive,
    "train": train,
    "eval": evaluate,
    "report": report,
}
"""The commands of this file by name."""
