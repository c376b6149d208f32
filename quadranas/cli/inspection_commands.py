"""The commands that examine networks: inspect and profile."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from quadranas.cli.console import print_json, print_result, print_table, say, shown
from quadranas.cli.options import DATA, OUTPUT, Json, Model, Run, Weights
from quadranas.cli.own_model_option import with_own_model

if TYPE_CHECKING:
    from quadranas.commands.inspect import InspectResult
    from quadranas.commands.profile import MemoryResult, ProfileResult


@with_own_model
def inspect(
    run: Run,
    image: Annotated[
        Path,
        typer.Option("--image", help="Image to compute the terms for.", rich_help_panel=DATA),
    ],
    weights: Weights = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="HTML page to write. Default: inspection.html in the run folder.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what the quadratic layers of a trained network compute, as an HTML page."""
    from quadranas.commands.inspect import inspect as run_inspect

    result = run_inspect(run, image=image, output=output, weights=weights)
    print_result(result, as_json, _inspection_text)


def _inspection_text(result: "InspectResult") -> str:
    text = f"{result.page}: {len(result.layers)} quadratic layers"
    shares = [layer.second_order_share for layer in result.layers]
    known = [share for share in shares if share is not None]
    if known:
        text += f"; share of the second-order term from {min(known):.1%} to {max(known):.1%}"
    return text


@with_own_model
def profile(
    model: Model,
    resolution: Annotated[
        int | None,
        typer.Option(
            help="Height and width of the input in pixels (default: the model's own).",
            rich_help_panel=DATA,
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            "--num-classes",
            min=1,
            help="Number of classes (default: the model's own).",
            rich_help_panel=DATA,
        ),
    ] = None,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            help="Predict the memory of training and inference, per layer.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of images for --memory (default 1).", rich_help_panel=DATA
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Count parameters and MACs per operation, or predict the memory per layer."""
    from quadranas.commands.profile import ProfileResult
    from quadranas.commands.profile import profile as run_profile

    result = run_profile(
        model, resolution=resolution, num_classes=num_classes, memory=memory, batch=batch
    )
    if as_json:
        print_json(result)
    elif isinstance(result, ProfileResult):
        _print_counts(shown(result))
    else:
        _print_memory(shown(result))


def _print_counts(result: "ProfileResult") -> None:
    table = Table("block", "operation", "parameters", "MACs")
    for layer in result.layers:
        table.add_row(layer.block, layer.op, f"{layer.params:,}", f"{layer.macs:,}")
    print_table(table)
    say(
        f"{result.model} at {result.resolution} pixels: {result.params / 1e6:.2f} M "
        f"parameters, {result.macs / 1e9:.3f} G MACs"
    )


def _print_memory(result: "MemoryResult") -> None:
    """Print what every layer keeps for the backward pass, and the parts of the two peaks."""
    direct = result.direct
    compared = ["direct, MiB"] if direct else []
    name = Column("layer", overflow="fold")
    table = Table(name, "kind", "parameters", "MACs", "kept, MiB", *compared)
    for layer in result.layers:
        kept = [layer.saved_bytes, layer.saved_bytes_direct][: 1 + len(compared)]
        counts = [f"{layer.params:,}", f"{layer.macs:,}"]
        table.add_row(layer.name, layer.kind, *counts, *(f"{_mib(size):.3f}" for size in kept))
    print_table(table)
    say(
        f"{result.model}, batch {result.batch} at {result.resolution} pixels: "
        f"{result.params / 1e6:.2f} M parameters, {result.macs / 1e9:.3f} G MACs per image, "
        f"{_mib(result.saved_bytes):.1f} MiB kept for the backward pass"
    )
    for kind, peak, parts in (
        ("training", result.training_peak_bytes, result.training_parts_bytes),
        ("inference", result.inference_peak_bytes, result.inference_parts_bytes),
    ):
        shown = [f"{part.replace('_', ' ')} {_mib(n):.1f}" for part, n in parts.items() if n]
        say(f"{kind} peak {_mib(peak):.1f} MiB: {', '.join(shown)}")
    if direct:
        say(
            "without memory-efficient back-propagation: "
            f"{_mib(direct.saved_bytes):.1f} MiB kept, training peak "
            f"{_mib(direct.training_peak_bytes):.1f} MiB"
        )


def _mib(size: int) -> float:
    return size / 2**20


COMMANDS: dict[str, Callable[..., None]] = {
    "inspect": inspect,
    "profile": profile,
}
"""The commands of this file by name."""
