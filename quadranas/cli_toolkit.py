"""The commands of the quadratic toolkit."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from quadranas.cli_options import Json, Seed, Subject
from quadranas.console import print_result


def adapt_command(
    subject: Subject,
    output: Annotated[Path, typer.Option("--output", help="New folder for the network.")],
    weights: Annotated[
        str | None,
        typer.Option(help="A .safetensors or torch file, or timm:NAME, not the run's own."),
    ] = None,
    rank: Annotated[int, typer.Option(help="Of the quadratic terms.")] = 1,
    dilation: Annotated[int, typer.Option(help="Of the terms of convolutions.")] = 2,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layers", help="Pattern of the names of layers to adapt; all if none."),
    ] = None,
    train: Annotated[
        str, typer.Option(help="What training will move: all, or quadratic terms alone.")
    ] = "all",
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Add quadratic terms that start at zero to a pre-trained network."""
    from quadranas.adapt_network import adapt_network
    from quadranas.trained import open_subject

    result = adapt_network(
        open_subject(subject),
        output,
        weights=weights,
        rank=rank,
        dilation=dilation,
        layers=layers or (),
        train=train,  # type: ignore[arg-type] # checked there
        seed=seed or 0,
    )
    found = result["weights"]
    foreign = ""
    if found:
        foreign = f"weights: {len(found['used'])} tensors used, {len(found['unused'])} not"
        foreign += f", {len(found['untouched'])} of the network as drawn\n"
        foreign += "".join(f"  not used: {name}: {why}\n" for name, why in found["unused"].items())
    print_result(
        result,
        as_json,
        f"{foreign}{len(result['layers'])} layers adapted at rank {rank}: "
        f"{result['params_before'] / 1e6:.3f} -> {result['params'] / 1e6:.3f} M parameters, "
        f"{result['macs_before'] / 1e6:.1f} -> {result['macs'] / 1e6:.1f} M MACs\n"
        f"folder {output}\nnext: quadranas train {shlex.quote(str(output))}",
    )


COMMANDS: dict[str, Callable[..., None]] = {"adapt": adapt_command}
"""The commands of this file by name."""
