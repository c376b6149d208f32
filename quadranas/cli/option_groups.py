"""Groups of options that several commands take alike, and how a command takes them."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quadranas.cli.options import (
    PANELS,
    Accelerator,
    AllowCommands,
    Also,
    BatchSize,
    Compile,
    Confidence,
    Data,
    DevicePrecision,
    Holdout,
    Inspect,
    Keep,
    MaxMacs,
    MaxMemory,
    MaxParams,
    MaxSize,
    Precision,
    Recipe,
    RemotePython,
    Rpc,
    RpcKey,
    RpcTracker,
    Seed,
    SkipCorrupt,
    Ssh,
    Teacher,
    Threads,
    Tolerance,
    TuningTrials,
    Val,
    Verify,
    WorkerPython,
    Workers,
    given,
)

REACH = {
    "rpc": Rpc,
    "rpc_tracker": RpcTracker,
    "rpc_key": RpcKey,
    "worker_python": WorkerPython,
    "ssh": Ssh,
    "python": RemotePython,
}
"""The options that say how a device is reached."""

SETTINGS = {
    "threads": Threads,
    "precision": DevicePrecision,
    "batch_size": BatchSize,
    "tuning_trials": TuningTrials,
    **REACH,
    "allow_commands": AllowCommands,
}
"""The options that replace keys of a device."""

TRAINING_KEYS = {
    "data": Data,
    "val": Val,
    "skip_corrupt": SkipCorrupt,
    "verify": Verify,
    "workers": Workers,
    "seed": Seed,
    "recipe": Recipe,
    "teacher": Teacher,
    "holdout": Holdout,
    "keep": Keep,
    "inspect": Inspect,
    "accelerator": Accelerator,
    "precision": Precision,
    "compile": Compile,
}
"""The options that replace keys of every training, whose names they have."""

NETWORK_LIMITS = {
    "also": Also,
    "max_params": MaxParams,
    "max_macs": MaxMacs,
    "max_size": MaxSize,
    "max_memory": MaxMemory,
    "confidence": Confidence,
    "tolerance": Tolerance,
}
"""The options that limit a network, besides its budget."""

Command = Callable[..., None]


def with_parameters(command: Command, parameters: Sequence[inspect.Parameter]) -> Command:
    """A command that shows these parameters to Typer, which makes its options of them."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def taking(*groups: Mapping[str, Any]) -> Callable[[Command], Command]:
    """Give a command groups of options, in place of its last parameter, a mapping.

    It gets those that were given there. Within a panel, they follow the command's own options.
    """
    shared = {name: kind for group in groups for name, kind in group.items()}

    def decorate(command: Command) -> Command:
        *own, last = inspect.signature(command).parameters.values()
        option = last.replace(kind=last.KEYWORD_ONLY, default=None)
        added = [option.replace(name=name, annotation=kind) for name, kind in shared.items()]

        @functools.wraps(command)
        def with_shared(**options: Any) -> None:
            taken = given(**{name: options.pop(name, None) for name in shared})
            command(**options, **{last.name: taken})

        # Typer passes all by name
        ordered = sorted((p.replace(kind=p.KEYWORD_ONLY) for p in [*own, *added]), key=_place)
        return with_parameters(with_shared, ordered)

    return decorate


def _place(parameter: inspect.Parameter) -> int:
    """The place of a parameter's panel; arguments come first."""
    return PANELS.index(panel) if (panel := panel_of(parameter)) else -1


def panel_of(parameter: inspect.Parameter) -> str:
    """The panel of an option in `--help`; empty for an argument."""
    return getattr(parameter.annotation.__metadata__[0], "rich_help_panel", None) or ""
