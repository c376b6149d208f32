"""The commands about exported bundles: run, compare, publish."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from quadranas.cli.console import (
    print_json,
    print_result,
    print_table,
    reporting,
    say,
    shown,
)
from quadranas.cli.option_groups import REACH, taking
from quadranas.cli.options import (
    DATA,
    DEVICE,
    MEASUREMENT,
    OUTPUT,
    Data,
    Json,
    Quiet,
    SkipCorrupt,
    Val,
    Weights,
)
from quadranas.latency.runtimes import (
    file_formats,
    files_of,
)

if TYPE_CHECKING:
    from quadranas.commands.compare import CompareResult
    from quadranas.commands.publish import PublishResult
    from quadranas.commands.run import RunResult
    from quadranas.latency.device import ReachSettings

BundleDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="YAML file of the bundle's device, which says how to reach it.",
        rich_help_panel=DEVICE,
    ),
]
NativeCode = Annotated[
    bool,
    typer.Option(
        "--allow-native-code",
        help="Run a file that is machine code (format "
        f"{', '.join(name for name in file_formats() if files_of(name).native)}); "
        "only for bundles from a source that you trust.",
        rich_help_panel=DEVICE,
    ),
]


@taking(REACH)
def run_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle, as written by export.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    device: BundleDevice = None,
    allow_native_code: NativeCode = False,
    top: Annotated[
        int | None,
        typer.Option(
            help="Number of labels per image. Default: 5, or all classes if there are fewer.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
    *,
    reach: "ReachSettings",
) -> None:
    """Label images with an exported bundle, and time the inference."""
    from quadranas.commands.run import run

    result = run(
        bundle,
        images,
        top=top,
        allow_native_code=allow_native_code,
        device=device,
        **reach,
    )
    print_result(result, as_json, _run_text)


def _run_text(result: "RunResult") -> str:
    """The labels of every image, then runtime and hardware."""
    from quadranas.errors import printable
    from quadranas.latency.budget import format_ms

    at_export = result.measured_ms
    beside = f", {format_ms(at_export)} at export" if at_export is not None else ""
    lines = []
    for answer in result.results:
        taken = "not timed" if answer.ms is None else format_ms(answer.ms)
        if answer.p95_ms is not None:
            taken += f" (p95 {format_ms(answer.p95_ms)})"
        lines.append(f"{printable(str(answer.image))}: {taken}{beside}")
        lines += [f"  {label.probability:7.2%}  {label.label}" for label in answer.labels]
    size = result.batch_size
    call = "image" if size == 1 else f"call with {size} copies of the image"
    lines.append(f"{result.runtime} on {result.hardware}, {result.precision}, per {call}")
    if at_export is not None:
        lines.append(f"at export: {result.measured_on}")
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join(lines)


@taking(REACH)
def compare_command(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE", help="Bundles.")],
    device: BundleDevice = None,
    allow_native_code: NativeCode = False,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of rounds in which all files are timed.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = None,
    data: Data = None,
    val: Val = None,
    skip_corrupt: SkipCorrupt = None,
    images: Annotated[
        int,
        typer.Option(min=1, help="Number of test images.", rich_help_panel=DATA),
    ] = 1000,
    output: Annotated[
        Path,
        typer.Option(help="The page to write.", rich_help_panel=OUTPUT),
    ] = Path("comparison.html"),
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    reach: "ReachSettings",
) -> None:
    """Compare exported bundles on one device: accuracy, latency and size, with the proof."""
    from quadranas.commands.compare import compare

    with reporting(quiet) as reporter:
        result = compare(
            bundles,
            data=data,
            val=val,
            skip_corrupt=bool(skip_corrupt),
            images=images,
            rounds=rounds,
            allow_native_code=allow_native_code,
            device=device,
            output=output,
            reporter=reporter,
            **reach,
        )
    if as_json:
        return print_json(result)
    _show_comparison(shown(result))


def _show_comparison(result: "CompareResult") -> None:
    """The files as a table, and how they were measured."""
    from quadranas.reports.bundle_page import accuracy_text, latency_text, size_text

    table = Table(title=f"{result.device}: {result.hardware}")
    for name in ("bundle", "format"):
        table.add_column(name, overflow="fold")
    for name in ("latency", "accuracy", "at export", "as PyTorch", "size"):
        table.add_column(name, justify="right")
    for one in result.bundles:
        at_export = "unknown" if one.export_accuracy is None else f"{one.export_accuracy:.2%}"
        table.add_row(
            str(one.bundle),
            f"{one.format}, {one.precision}",
            latency_text(one),
            accuracy_text(one),
            at_export,
            f"{one.agreement:.2%}",
            size_text(one),
            style="bold" if one.on_front else None,
        )
    print_table(table)
    for note in result.notes:
        say(f"note: {note}")
    say(f"page {result.page}")


def publish_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle, as written by export.")],
    output: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="The network that was exported: a run folder or an architecture file. Default: "
            "the run folder that holds the bundle.",
            rich_help_panel=DATA,
        ),
    ] = None,
    weights: Weights = None,
    license: Annotated[
        str,
        typer.Option(
            help="Licence of the weights, as the hub names it, such as apache-2.0.",
            rich_help_panel=OUTPUT,
        ),
    ] = "unknown",
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace a published folder.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write an exported network as a folder for a model hub."""
    from quadranas.commands.publish import publish

    result = publish(bundle, output, model=model, weights=weights, license=license, force=force)
    print_result(result, as_json, _publish_text)


def _publish_text(result: "PublishResult") -> str:
    """The folder, its evaluation, and what the metadata lack."""
    size = f"{len(result.files)} files, {result.size_bytes / 2**20:.2f} MiB"
    lines = [f"{result.folder}: {result.name}, {size}, licence {result.license}"]
    if result.accuracy is not None:
        lines.append(f"evaluation: accuracy {result.accuracy:.2%} on {result.num_images} images")
    lines += [f"note: {note}" for note in result.notes]
    lines.append(f"open it with: quadranas.from_pretrained({str(result.folder)!r})")
    return "\n".join([*lines, "upload it with the hub's own tool"])


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run_command,
    "compare": compare_command,
    "publish": publish_command,
}
"""The commands of this file by name."""
