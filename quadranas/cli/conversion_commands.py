"""The commands that replace layers of networks, or make spaces of them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from quadranas.cli.console import print_result, print_table, say, shown
from quadranas.cli.options import (
    DATA,
    LAYERS,
    OUTPUT,
    TRAINING,
    Accelerator,
    Data,
    Json,
    Model,
    Precision,
    Seed,
    SkipCorrupt,
    Val,
    Weights,
    given,
)
from quadranas.cli.own_model_option import with_own_model
from quadranas.errors import QuadranasError

if TYPE_CHECKING:
    from quadranas.commands.adapt import AdaptResult
    from quadranas.commands.convert import ConvertResult, ReduceResult


Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        help="Pattern of the paths of layers, such as 'blocks.stage3*'. Can be repeated. "
        "Default: all suitable layers.",
        rich_help_panel=LAYERS,
    ),
]


ConvertOutput = Annotated[
    Path,
    typer.Option(
        "--output",
        help="New folder to write. A conversion can also write a new .json file.",
        rich_help_panel=OUTPUT,
    ),
]
Form = Annotated[
    str | None,
    typer.Option(help="Kind of quadratic neuron (default hadamard).", rich_help_panel=LAYERS),
]
Norm = Annotated[
    bool,
    typer.Option(
        "--norm", help="Put a BatchNorm on every branch of the new layers.", rich_help_panel=LAYERS
    ),
]
Remove = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of quadratic layers to remove from a trained run.",
        rich_help_panel=LAYERS,
    ),
]
Revert = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of converted layers of a trained run to make first-order again.",
        rich_help_panel=LAYERS,
    ),
]


@with_own_model
def convert(
    model: Model,
    *,
    form: Form = None,
    layers: Layers = None,
    norm: Norm = False,
    remove: Remove = None,
    revert: Revert = None,
    data: Data = None,
    val: Val = None,
    skip_corrupt: SkipCorrupt = None,
    weights: Weights = None,
    accelerator: Accelerator = None,
    precision: Precision = None,
    output: ConvertOutput,
    as_json: Json = False,
) -> None:
    """Make layers quadratic, or remove the least important ones of a trained network."""
    from quadranas.commands.convert import ConvertResult
    from quadranas.commands.convert import convert as run_convert
    from quadranas.runs.next_command import train_command

    result = run_convert(
        model,
        output=output,
        form=form,
        layers=layers or (),
        norm=norm,
        remove=remove,
        revert=revert,
        data=data,
        val=val,
        skip_corrupt=skip_corrupt,
        weights=weights,
        **given(accelerator=accelerator, precision=precision),
    )
    if isinstance(result, ConvertResult):
        return print_result(
            result, as_json, _conversion_text, lambda made: train_command(made.path)
        )
    if not as_json:
        _print_ranking(shown(result))
    print_result(result, as_json, _reduction_text, lambda made: train_command(made.run))


def _conversion_text(result: "ConvertResult") -> str:
    kept = [f"  {layer.name} ({layer.kind}): {layer.reason}" for layer in result.kept]
    return "\n".join(
        [
            f"{len(result.replaced)} layers made quadratic, {len(kept)} kept:",
            *kept,
            f"parameters: {result.params_before:,} before, {result.params:,} now; MACs: "
            f"{result.macs_before:,} before, {result.macs:,} now",
            f"written to {result.path}",
        ]
    )


def _print_ranking(result: "ReduceResult") -> None:
    """Print the layers by their index, the least important one at the top."""
    table = Table("layer", "parameters", "P_M", "P_W", "dA", "RI", "")
    table.columns[0].overflow = "fold"
    rows = result.model_dump(mode="json")["ranking"]
    for layer, row in zip(result.ranking, rows, strict=True):
        removed = "removed" if layer.name in result.removed else ""
        table.add_row(
            layer.name,
            f"{layer.params:,}",
            f"{layer.params_share:.2%}",
            f"{layer.macs_share:.2%}",
            f"{layer.accuracy_drop:+.2%}",
            "infinite" if row["ri"] is None else f"{layer.ri:.3g}",
            "reverted" if layer.name in result.reverted else removed or layer.obstacle,
        )
    print_table(table)
    if any(row["ri"] is None for row in rows):
        say("infinite: masking the layer costs no accuracy; such layers are ordered by P_M * P_W")


def _reduction_text(result: "ReduceResult") -> str:
    from quadranas.data.description import describe_skipped
    from quadranas.runs import layout

    return (
        f"{len(result.removed)} layers removed, {len(result.reverted)} reverted: "
        f"{result.params:,} parameters, {result.macs:,} MACs, accuracy before further training "
        f"{result.accuracy:.2%} at {result.resolution} pixels on {result.num_images} images of "
        f"{result.data}{describe_skipped(result.num_skipped)}\n"
        f"written to {result.run}, with {layout.RANKING} and {layout.RANKING_PLOT}"
    )


@with_own_model
def adapt(
    model: Model,
    *,
    rank: Annotated[
        int, typer.Option(help="Rank of the quadratic terms.", rich_help_panel=LAYERS)
    ] = 1,
    dilation: Annotated[
        int,
        typer.Option(
            help="Dilation of the quadratic terms of convolutions.", rich_help_panel=LAYERS
        ),
    ] = 2,
    layers: Layers = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Pre-trained weights to use instead of the run's own: a .safetensors or torch "
            "file, or timm:NAME.",
            rich_help_panel=DATA,
        ),
    ] = None,
    train: Annotated[
        str,
        typer.Option(
            help="Parameters that training changes: all, or those of the quadratic terms.",
            metavar="all|quadratic",
            rich_help_panel=TRAINING,
        ),
    ] = "all",
    seed: Seed = None,
    output: Annotated[
        Path, typer.Option("--output", help="New folder to write.", rich_help_panel=OUTPUT)
    ],
    as_json: Json = False,
) -> None:
    """Add quadratic terms that start at zero to a pre-trained network."""
    from quadranas.commands.adapt import adapt as run_adapt
    from quadranas.runs.next_command import train_command

    result = run_adapt(
        model,
        output=output,
        weights=weights,
        rank=rank,
        dilation=dilation,
        layers=layers or (),
        train=train,  # type: ignore[arg-type] # checked there
        seed=seed or 0,
    )
    print_result(result, as_json, _adaptation_text, lambda made: train_command(made.folder))


def _adaptation_text(result: "AdaptResult") -> str:
    lines = []
    if result.weights is not None:
        used, unused = result.weights.used, result.weights.unused
        lines.append(
            f"weights: {len(used)} tensors used, {len(unused)} not used; "
            f"{len(result.weights.untouched)} tensors of the network keep their initial values"
        )
        if result.weights.note:
            lines.append(f"  {result.weights.note}")
        lines += [f"  not used: {name}: {reason}" for name, reason in unused.items()]
    lines += [
        f"{len(result.layers)} layers adapted at rank {result.rank}: "
        f"{result.params_before / 1e6:.3f} -> {result.params / 1e6:.3f} M parameters, "
        f"{result.macs_before / 1e6:.1f} -> {result.macs / 1e6:.1f} M MACs",
        f"folder {result.folder}",
    ]
    return "\n".join(lines)


def space_from(
    source: Annotated[
        str,
        typer.Argument(
            metavar="WEIGHTS|MODEL.py:FUNCTION",
            help="Pre-trained network: a run folder, a file of weights or timm:NAME; or a "
            "function in a Python file, which is run and returns your own model.",
        ),
    ],
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Your own model: parts that may change, as PATTERN or PATTERN=CHOICE,..., with "
            "choices from skip, kernel, hidden (the default), quadratic and adapted; may be "
            "repeated.",
            rich_help_panel=LAYERS,
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Image size for which latencies are counted, in pixels. Default: that of the "
            "network, 224 if it is unknown.",
            rich_help_panel=DATA,
        ),
    ] = None,
    quadratic: Annotated[
        bool,
        typer.Option(
            "--quadratic",
            help="MobileNetV2: make its depthwise convolutions quadratic.",
            rich_help_panel=LAYERS,
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="New YAML file, after which the space is named. Default: named after the source.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a search space around a pre-trained network or from your own model."""
    from quadranas.network.own_code import is_code

    if is_code(source):
        if quadratic:
            raise QuadranasError(
                "--quadratic is for a pre-trained network; of your own model --where chooses",
                "Name the layers: --where 'PATTERN=quadratic'.",
            )
        return _own_space_from(source, where or [], resolution or 224, output, as_json=as_json)
    if where:
        raise QuadranasError(
            "--where needs your own model", "Name its code: quadranas space-from MODEL.py:build."
        )
    from quadranas.commands.space_from import space_from as run_space_from
    from quadranas.runs.next_command import proposed

    result = run_space_from(source, output=output, resolution=resolution, quadratic=quadratic)
    print_result(
        result,
        as_json,
        lambda made: (
            f"space {made.path}: {made.architectures:,} networks around a {made.family} of the "
            f"widths {', '.join(map(str, made.widths))}, at {made.resolution} pixels"
        ),
        lambda made: proposed("build-lut", device="cpu", space=made.path),
    )


def _own_space_from(
    source: str, where: list[str], resolution: int, output: Path | None, *, as_json: bool
) -> None:
    import torch

    from quadranas.commands.make_space import make_space, parse_where
    from quadranas.network.own_code import load_own_code
    from quadranas.runs.next_command import proposed

    result = make_space(
        load_own_code(source),
        torch.zeros(1, 3, resolution, resolution),
        where=parse_where(where),
        output=output,
        source=source,
    )
    print_result(
        result,
        as_json,
        lambda made: "\n".join(
            [
                f"space {made.path}: {made.architectures:,} networks from {made.model}, at "
                f"{made.resolution} pixels; all but these parts stays as it is:",
                *(
                    f"  {part.layer}: {', '.join(part.choices)} ({part.candidates} candidates)"
                    for part in made.parts
                ),
            ]
        ),
        lambda made: proposed("build-lut", device="cpu", space=made.path, own_model=source),
    )


COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "adapt": adapt,
    "space-from": space_from,
}
"""The commands of this file by name."""
