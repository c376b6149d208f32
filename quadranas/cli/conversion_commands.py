"""The commands of the quadratic toolkit."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from quadranas.cli.console import print_result, say
from quadranas.cli.options import Data, Json, Model, Seed, SkipCorrupt, Val, Weights, given
from quadranas.errors import QuadranasError

Layers = Annotated[
    list[str] | None,
    typer.Option("--layers", help="Pattern of layers' paths, such as 'blocks.stage3*'; repeat."),
]


def convert(
    model: Model,
    output: Annotated[Path, typer.Option(help="New folder, or a new .json file.")],
    form: Annotated[str | None, typer.Option(help="The neuron; default: hadamard.")] = None,
    layers: Layers = None,
    norm: Annotated[bool, typer.Option("--norm", help="BatchNorm on every branch.")] = False,
    remove: Annotated[
        int | None, typer.Option(min=1, help="So many quadratic layers of a trained run go.")
    ] = None,
    revert: Annotated[
        int | None, typer.Option(min=1, help="So many become first-order again.")
    ] = None,
    data: Data = None,
    val: Val = None,
    skip_corrupt: SkipCorrupt = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Make layers quadratic; or take a trained network's least important ones out."""
    from quadranas.commands.convert import convert_network, reduce_network
    from quadranas.runs.config import DataConfig, load_config
    from quadranas.runs.stored_network import open_network

    ranking = given(data=data, val=val, skip_corrupt=skip_corrupt)
    reducing = remove is not None or revert is not None
    _check_options(reducing, given(form=form, norm=norm or None), ranking | given(weights=weights))
    opened = open_network(model, weights)
    if not reducing:
        chosen = given(form=form, layers=layers)
        result = convert_network(opened, output, norm=norm, **chosen)
        return print_result(result, as_json, _conversion_text(result))
    result = reduce_network(
        opened,
        output,
        num_removed=remove or 0,
        num_reverted=revert or 0,
        layers=layers or (),
        data=load_config(DataConfig, None, **ranking),
    )
    if not as_json:
        _print_ranking(result)
    print_result(result, as_json, _reduction_text(result))


def _check_options(reducing: bool, converting: dict[str, Any], ranking: dict[str, Any]) -> None:
    """Refuse options of the other of the command's two uses.

    Raises:
        QuadranasError: names the first one.
    """
    if reducing and converting:
        raise QuadranasError(
            f"--{next(iter(converting))} does not go with --remove and --revert",
            "Convert first, train the result, then remove or revert layers of the trained run.",
        )
    if not reducing and ranking:
        raise QuadranasError(
            f"--{next(iter(ranking)).replace('_', '-')} is for ranking layers, with --remove or "
            "--revert",
            "Leave it out: a conversion needs no images and no weights.",
        )


def _conversion_text(result: dict[str, Any]) -> str:
    kept = [f"  {layer['name']} ({layer['kind']}): {layer['reason']}" for layer in result["kept"]]
    return "\n".join(
        [
            f"{len(result['replaced'])} layers made quadratic, {len(kept)} kept:",
            *kept,
            f"parameters {result['params_before']:,} to {result['params']:,}, MACs "
            f"{result['macs_before']:,} to {result['macs']:,}\nwritten to {result['path']}",
            f"next: quadranas train {shlex.quote(result['path'])}",
        ]
    )


def _print_ranking(result: dict[str, Any]) -> None:
    """Print the layers by their index, the first to go at the top."""
    table = Table("layer", "parameters", "P_M", "P_W", "dA", "RI", "")
    table.columns[0].overflow = "fold"
    for layer in result["ranking"]:
        name = layer["name"]
        done = "removed" if name in result["removed"] else ""
        table.add_row(
            name,
            f"{layer['params']:,}",
            f"{layer['params_share']:.2%}",
            f"{layer['macs_share']:.2%}",
            f"{layer['accuracy_drop']:+.2%}",
            "infinite" if layer["ri"] is None else f"{layer['ri']:.3g}",
            "reverted" if name in result["reverted"] else done or layer["obstacle"],
        )
    Console(highlight=False, markup=False, emoji=False).print(table)
    if any(layer["ri"] is None for layer in result["ranking"]):
        say("infinite: masking the layer costs no accuracy; these are ordered by P_M * P_W")


def _reduction_text(result: dict[str, Any]) -> str:
    return (
        f"{len(result['removed'])} layers removed, {len(result['reverted'])} reverted: "
        f"{result['params']:,} parameters, {result['macs']:,} MACs, accuracy before any further "
        f"training {result['accuracy']:.2%} on {result['num_images']} images of {result['data']}\n"
        f"written to {result['run']}, with importance.json and importance.png\n"
        f"next: quadranas train {shlex.quote(result['run'])}"
    )


def adapt(
    model: Model,
    output: Annotated[Path, typer.Option("--output", help="New folder for the network.")],
    weights: Annotated[
        str | None,
        typer.Option(help="A .safetensors or torch file, or timm:NAME, not the run's own."),
    ] = None,
    rank: Annotated[int, typer.Option(help="Of the quadratic terms.")] = 1,
    dilation: Annotated[int, typer.Option(help="Of the terms of convolutions.")] = 2,
    layers: Layers = None,
    train: Annotated[
        str, typer.Option(help="What training will move: all, or quadratic terms alone.")
    ] = "all",
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Add quadratic terms that start at zero to a pre-trained network."""
    from quadranas.commands.adapt import adapt_network
    from quadranas.runs.stored_network import open_network

    result = adapt_network(
        open_network(model),
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


COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "adapt": adapt,
}
"""The commands of this file by name."""
