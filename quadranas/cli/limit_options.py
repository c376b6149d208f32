"""The limits of a network: options that search, derive and explore take alike."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from quadranas.cli.options import DATA, DEVICE, LIMITS, OUTPUT, TRAINING, Tolerance, given

PANELS = (DEVICE, DATA, TRAINING, LIMITS, OUTPUT)


MaxSize = Annotated[
    str | None,
    typer.Option(
        help="Upper limit on the size of the weights in an exported fp32 file, such as 4MB. "
        "Default: no limit.",
        rich_help_panel=LIMITS,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        help="Upper limit on the peak memory of activations at inference, such as 512KiB. "
        "Default: no limit.",
        rich_help_panel=LIMITS,
    ),
]


def _options(
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="Budget on a further device, as DEVICE=BUDGET, which the network keeps too; may "
            "be repeated.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    max_params: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Upper limit on the number of parameters. Default: no limit.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    max_macs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Upper limit on the number of multiply-accumulates. Default: no limit.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    max_size: MaxSize = None,
    max_memory: MaxMemory = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            help="Probability that the measured latency is within the budget, such as 0.95. "
            "Default: only the predicted latency has to be within it.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    tolerance: Tolerance = None,
) -> None:
    """The shared options; their signature is what counts."""


def with_limits(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options in place of its `**limits`, which gets those given."""
    shared = inspect.signature(_options).parameters
    own = inspect.signature(command)
    parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters += shared.values()

    @wraps(command)
    def with_shared(*args: Any, **options: Any) -> None:
        limits = {name: options.pop(name) for name in shared if name in options}
        command(*args, **options, **given(**limits))

    # Stable: within a panel as they are written. Typer passes all by name.
    ordered = [p.replace(kind=p.KEYWORD_ONLY) for p in sorted(parameters, key=_panel)]
    with_shared.__signature__ = own.replace(parameters=ordered)  # type: ignore[attr-defined]
    with_shared.__annotations__ = {p.name: p.annotation for p in ordered}
    return with_shared


def _panel(parameter: inspect.Parameter) -> int:
    """The place of a parameter's panel in `--help`; arguments come first."""
    info = parameter.annotation.__metadata__[0]
    panel = getattr(info, "rich_help_panel", None)
    return PANELS.index(panel) if panel in PANELS else -1
