"""The command line: one sub-command per verb. It parses, calls and prints; it decides nothing.

Exit codes: 0 done, 1 our bug, 2 the user can mend it, 3 a promise was missed, 130 interrupted.
Heavy modules are imported by the commands that need them, so that `--help` is quick.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from quadranas import __version__
from quadranas.console import (
    INTERRUPTED,
    fail,
    network_line,
    print_json,
    print_prediction,
    print_result,
    reporting,
    say,
    warn,
)
from quadranas.errors import PromiseMissedError, QuadranasError

app = typer.Typer(
    name="quadranas",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find, train and export the best network for a device and a latency budget.",
)

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
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="A .safetensors file, not the run's own.")
]
Subject = Annotated[
    str, typer.Argument(help="An architecture file, a run folder, or a model's name.")
]
Run = Annotated[Path, typer.Argument(help="A search's run folder.")]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(f"quadranas {__version__}")
        raise typer.Exit


@app.command()
def devices(
    names: Annotated[list[str] | None, typer.Argument(help="Devices; all if none.")] = None,
    as_json: Json = False,
) -> None:
    """Devices, their latency tables, and the runtimes installed here to measure with."""
    from quadranas.survey import installed_runtimes, survey_devices

    found, runtimes = survey_devices(names or []), installed_runtimes()
    if as_json:
        return print_json({"devices": found, "runtimes": runtimes})
    for d in found:
        threads = f", threads: {d['threads']}" if d["threads"] else ""
        runtime = d["runtime"] or "not measured"
        say(f"{d['name']}  {d['title']}, {runtime}, {d['precision']}{threads}")
        say(f"     tables: {', '.join(d['tables']) or 'none'}")
        if d["expected_error"]:
            say(f"     analytic model; expected error {d['expected_error']}")
    say(f"runtimes installed here: {', '.join(runtimes) or 'none'}")


@app.command()
def spaces(
    names: Annotated[list[str] | None, typer.Argument(help="Spaces; all if none.")] = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="Devices; all shipped if none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search spaces: size, MACs, and the latencies they reach per device."""
    from quadranas.latency.budget import format_ms
    from quadranas.survey import survey_spaces

    found = survey_spaces(names or [], device or [])
    if as_json:
        return print_json({"spaces": found})
    for s in found:
        say(
            f"{s['name']}  {s['architectures']:.3g} architectures, {s['min_macs'] / 1e6:.4g} to "
            f"{s['max_macs'] / 1e6:.4g} M MACs at {s['resolution']} pixels"
        )
        for name, d in s["devices"].items():
            latency = f"{format_ms(d['min_ms'])} to {format_ms(d['max_ms'])}"
            say(f"     {name:<5} {latency:<22} {d['summary']}")


@app.command("build-lut")
def build_lut_command(
    device: DeviceName,
    space: SpaceName = "quadranet-mobile",
    backend: Annotated[
        str | None,
        typer.Option(help="analytic, onnxruntime, openvino, tvm, cuda, or fastest on this host."),
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
    from quadranas.build_lut import build_lut
    from quadranas.latency.device import load_device
    from quadranas.space import load_space

    given = _given(
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
            load_device(device).configured(**given),
            reporter=reporter,
            backend=backend,
            output=output,
            num_classes=num_classes or (),
            only_missing=only_missing,
            command=_command_line(),
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


@app.command("validate-lut")
def validate_lut_command(
    device: DeviceName,
    space: SpaceName = "quadranet-mobile",
    table: TableFile = None,
    networks: Annotated[int, typer.Option(min=2, help="How many fresh networks.")] = 30,
    seed: Annotated[int, typer.Option(help="Another seed draws other networks.")] = 0,
    rpc: Rpc = None,
    rpc_tracker: RpcTracker = None,
    rpc_key: RpcKey = None,
    worker_python: WorkerPython = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure fresh random networks against a table's predictions, and note the result in it."""
    from quadranas.latency.device import load_device
    from quadranas.space import load_space
    from quadranas.validate_lut import validate_lut

    reach = _given(rpc=rpc, rpc_tracker=rpc_tracker, rpc_key=rpc_key, worker_python=worker_python)
    with reporting(quiet) as reporter:
        result = validate_lut(
            load_space(space),
            load_device(device).configured(**reach),
            reporter,
            path=table,
            num_networks=networks,
            seed=seed,
            command=_command_line(),
        )
    print_result(result, as_json, f"{result['summary']}\nplot {result['plot']}")


@app.command("merge-lut")
def merge_lut_command(
    tables: Annotated[list[Path], typer.Argument(help="Two or more tables of one device.")],
    output: Annotated[Path, typer.Option(help="The merged table.")],
    as_json: Json = False,
) -> None:
    """Put the entries of several tables of one device and space into one."""
    from quadranas.merge_lut import merge_lut

    merged = merge_lut(tables, output, command=_command_line())
    result = {"path": str(output), "entries": len(merged.entries)}
    print_result(result, as_json, f"{output}: {len(merged.entries)} entries")


@app.command()
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
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find, train and test the best network under a latency budget."""
    from quadranas.config import SearchConfig, agrees, load_overrides, run_name
    from quadranas.report import write_report
    from quadranas.run_folder import choose_folder
    from quadranas.search import search as run_search

    overrides = load_overrides(config, SearchConfig) | _given(
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
    )
    folder = output or choose_folder(
        run_name(overrides),
        (lambda path: agrees(SearchConfig, path, overrides)) if resume else None,
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


@app.command()
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
    from quadranas.derive import derive as run_derive
    from quadranas.latency.budget import parse_budget
    from quadranas.latency.contract import Contract
    from quadranas.latency.device import load_device

    given = _given(confidence=confidence, tolerance=tolerance)
    contract = Contract(budget_ms=parse_budget(budget), **given)
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


@app.command()
def train(
    subject: Subject,
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
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a network: from its weights if it has any, else from scratch."""
    from quadranas.config import TrainConfig, agrees, load_overrides
    from quadranas.run_folder import choose_folder
    from quadranas.train import train as run_train
    from quadranas.trained import open_subject

    overrides = load_overrides(config, TrainConfig) | _given(
        data=data, val=val, seed=seed, epochs=epochs, skip_corrupt=skip_corrupt
    )
    name = f"train-{Path(subject).absolute().name.removesuffix('.json')}"

    def accept(path: Path) -> bool:
        return path.name.rpartition("-")[0] == name and agrees(TrainConfig, path, overrides)

    folder = output or choose_folder(name, accept if resume else None)
    with reporting(quiet, "train", folder) as reporter:
        opened = open_subject(subject, weights)
        result = run_train(
            opened, overrides, folder, reporter, resume=resume, source="command line"
        )
    print_result(result, as_json, f"test accuracy {result['accuracy']:.2%}\nrun {folder}")


@app.command("eval")
def evaluate(
    subject: Subject,
    data: Data = None,
    val: Val = None,
    weights: Weights = None,
    skip_corrupt: SkipCorrupt = None,
    as_json: Json = False,
) -> None:
    """Accuracy of a trained network on the test images."""
    from quadranas.train import measure_accuracy
    from quadranas.trained import open_subject

    given = _given(data=data, val=val, skip_corrupt=skip_corrupt)
    result = measure_accuracy(open_subject(subject, weights), given)
    line = f"test accuracy {result['accuracy']:.2%} on {result['num_images']} images"
    print_result(result, as_json, line)


@app.command()
def report(run: Run, as_json: Json = False) -> None:
    """Write a run's report: one self-contained HTML page."""
    from quadranas.report import write_report

    path = write_report(run)
    print_result({"run": str(run), "report": str(path)}, as_json, str(path))


@app.command()
def export(
    subject: Subject,
    file_format: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    output: Annotated[
        Path | None, typer.Option(help="File; default: subnet.onnx in the run folder, or here.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Of the input; default: the deployment resolution.")
    ] = None,
    weights: Weights = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Write a network as a file for a runtime, and check it there against PyTorch."""
    from quadranas.export import export as run_export
    from quadranas.trained import open_subject

    opened = open_subject(subject, weights)
    opened.require_weights()
    target = output or (opened.folder or Path()) / f"subnet.{file_format}"
    result = run_export(
        opened, output=target, file_format=file_format, resolution=resolution, force=force
    )
    print_result(
        result,
        as_json,
        f"{result['path']}: {result['size_bytes'] / 2**20:.2f} MiB, input "
        f"{result['resolution']} pixels\nONNX Runtime against PyTorch: largest error "
        f"{result['max_abs_error']:.2e}, top-1 agreement {result['top1_agreement']:.0%}",
    )


@app.command()
def profile(
    subject: Subject,
    resolution: Annotated[int | None, typer.Option(help="Input height and width.")] = None,
    num_classes: Annotated[int | None, typer.Option("--num-classes", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Parameters and MACs of a model, per operation."""
    from quadranas.naming import find_architecture
    from quadranas.profile import profile as run_profile

    architecture = find_architecture(subject)
    adapted = architecture.adapted(resolution=resolution, num_classes=num_classes)
    result = run_profile(adapted)
    if as_json:
        return print_json(result)
    table = Table("block", "operation", "parameters", "MACs")
    for layer in result["layers"]:
        table.add_row(layer["block"], layer["op"], f"{layer['params']:,}", f"{layer['macs']:,}")
    Console(highlight=False).print(table)
    say(
        f"{result['model']} at {result['resolution']} pixels: {result['params'] / 1e6:.2f} M "
        f"parameters, {result['macs'] / 1e9:.3f} G MACs"
    )


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    device: DeviceName,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Of the input, where the file leaves it open.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Latency of any ONNX file, from a device's analytic model."""
    from quadranas.latency.device import load_device
    from quadranas.predict import predict as run_predict

    result = run_predict(model, load_device(device), resolution=resolution)
    if as_json:
        return print_json(result)
    print_prediction(result)


def main() -> None:
    """Entry point of the console script."""
    # Threads that sleep while they wait: spinning ones made steps up to 50 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(prog_name="quadranas", standalone_mode=False) or 0
    except QuadranasError as error:
        fail(error.message, error.hint, error.exit_code)
    except typer.TyperException as error:
        if not error.format_message():  # the help was printed instead
            sys.exit(error.exit_code)
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "quadranas"
        fail(error.format_message(), f"See: {command} --help", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer 0.29 makes it of a KeyboardInterrupt, without a word
        fail("interrupted", "", INTERRUPTED)
    sys.exit(code)


def _check_promise(result: dict[str, Any]) -> None:
    """Leave with the exit code of a missed promise if a result is one; it has been printed."""
    from quadranas.deployment import missed_promise

    missed = missed_promise(result)
    if missed:
        warn(f"promise missed: {missed}")
        raise typer.Exit(PromiseMissedError.exit_code)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in options.items() if value is not None}


def _command_line() -> str:
    return shlex.join(["quadranas", *sys.argv[1:]])
