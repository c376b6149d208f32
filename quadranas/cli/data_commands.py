"""The command that describes data sets: data."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from quadranas.cli.console import print_json, print_table, reporting, say, shown
from quadranas.cli.options import OUTPUT, Json, Quiet, Seed, Val, Verify, given

if TYPE_CHECKING:
    from quadranas.commands.data import DataResult

MAX_CLASSES = 20
"""Maximum number of classes that are printed; the page lists more."""


def data(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="Folder or zip with one folder of images per class, tar shards or Parquet files.",
        ),
    ],
    val: Val = None,
    verify: Verify = None,
    seed: Seed = None,
    output: Annotated[
        Path | None,
        typer.Option(help="HTML page to write. Default: data-NAME.html.", rich_help_panel=OUTPUT),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show splits, classes, image sizes and corrupt images of a data set."""
    from quadranas.commands.data import describe_data

    with reporting(quiet) as reporter:
        result = describe_data(
            path,
            val=val,
            output=output,
            reporter=reporter,
            **given(verify=verify, seed=seed),
        )
    if as_json:
        return print_json(result)
    _print(shown(result))


def _print(result: "DataResult") -> None:
    from quadranas.reports.data_page import format_text, side_text

    table = Table("split", "images", "corrupt", "MB", "shorter side", "formats")
    for split in result.splits:
        held_out = " (held out)" if result.is_held_out and split.name == "test" else ""
        table.add_row(
            f"{split.name}{held_out}",
            f"{split.num_images:,}",
            f"{len(split.corrupt):,}",
            f"{split.num_bytes / 1e6:,.1f}",
            side_text(split),
            format_text(split),
        )
    print_table(table)
    say(f"{result.data}: {result.kind}, {len(result.classes)} classes")
    for found in result.classes[:MAX_CLASSES]:
        say(f"  {found.name}: {found.num_train} training, {found.num_test} test images")
    if len(result.classes) > MAX_CLASSES:
        say(f"  and {len(result.classes) - MAX_CLASSES} more classes")
    for split in result.splits:
        for name, reason in list(split.corrupt.items())[:MAX_CLASSES]:
            say(f"corrupt: {name}: {reason}", style="red")
        if len(split.corrupt) > MAX_CLASSES:
            say(f"corrupt: and {len(split.corrupt) - MAX_CLASSES} more in {split.name}", "red")
    for warning in result.warnings:
        say(f"warning: {warning}", style="yellow")
    say(f"page {result.page}")


COMMANDS: dict[str, Callable[..., None]] = {"data": data}
"""The commands of this file by name."""
