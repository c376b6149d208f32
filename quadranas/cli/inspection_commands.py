"""The commands that look into networks: inspect and profile."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from quadranas.cli.console import print_json, print_result, say
from quadranas.cli.options import Json, Model, Run, Weights
from quadranas.errors import QuadranasError


def inspect(
    run: Run,
    image: Annotated[Path, typer.Option("--image", help="What the terms are shown on.")],
    output: Annotated[
        Path | None, typer.Option(help="Page; default: inspection.html in the run folder.")
    ] = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Show what the quadratic layers of a trained network do: one self-contained HTML page."""
    from quadranas.commands.inspect import inspect_run
    from quadranas.runs.stored_network import open_network

    model = open_network(str(run), weights)
    result = inspect_run(model, image, output or run / "inspection.html")
    shares = [layer["second_order_share"] for layer in result["layers"]]
    known = [share for share in shares if share is not None]
    line = f"{result['page']}: {len(shares)} quadratic layers"
    if known:
        line += f"; share of the second-order term from {min(known):.1%} to {max(known):.1%}"
    print_result(result, as_json, line)


def profile(
    model: Model,
    resolution: Annotated[int | None, typer.Option(help="Input height and width.")] = None,
    num_classes: Annotated[int | None, typer.Option("--num-classes", min=1)] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also predict the memory of training and inference.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images at once, with --memory; default: 1.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Parameters and MACs of a model, per operation; with --memory, per layer."""
    from quadranas.commands.profile import profile as run_profile
    from quadranas.space.catalog import find_architecture

    architecture = find_architecture(model)
    adapted = architecture.adapted(resolution=resolution, num_classes=num_classes)
    if memory:
        from quadranas.commands.profile import profile_network_memory

        result = profile_network_memory(adapted, batch or 1)
        return print_json(result) if as_json else _print_memory(result)
    if batch is not None:
        raise QuadranasError(
            "--batch says how many images to predict the memory of", "Add --memory."
        )
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


def _print_memory(result: dict[str, Any]) -> None:
    """Print what every layer keeps, and the parts of the two peaks."""
    direct = result["direct"]
    compared = ["direct, MiB"] if direct else []
    name = Column("layer", overflow="fold")
    table = Table(name, "kind", "parameters", "MACs", "kept, MiB", *compared)
    for layer in result["layers"]:
        kept = [layer["saved_bytes"], layer["saved_bytes_direct"]][: 1 + len(compared)]
        counts = [f"{layer['params']:,}", f"{layer['macs']:,}"]
        sizes = [f"{_mib(size):.3f}" for size in kept]
        table.add_row(layer["name"], layer["kind"], *counts, *sizes)
    Console(highlight=False, markup=False).print(table)
    say(
        f"{result['model']}, batch {result['batch']} at {result['resolution']} pixels: "
        f"{result['params'] / 1e6:.2f} M parameters, {result['macs'] / 1e9:.3f} G MACs an image, "
        f"{_mib(result['saved_bytes']):.1f} MiB kept for the backward pass"
    )
    for kind in ("training", "inference"):
        parts = [
            f"{name.replace('_', ' ')} {_mib(size):.1f}"
            for name, size in result[f"{kind}_parts_bytes"].items()
            if size
        ]
        say(f"{kind} peak {_mib(result[f'{kind}_peak_bytes']):.1f} MiB: {', '.join(parts)}")
    if direct:
        say(
            "without memory-efficient back-propagation: "
            f"{_mib(direct['saved_bytes']):.1f} MiB kept, training peak "
            f"{_mib(direct['training_peak_bytes']):.1f} MiB"
        )


def _mib(size: int) -> float:
    return float(size / 2**20)


COMMANDS: dict[str, Callable[..., None]] = {
    "inspect": inspect,
    "profile": profile,
}
"""The commands of this file by name."""
