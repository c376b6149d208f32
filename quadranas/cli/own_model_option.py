"""The option that gives a user's own model to a command."""

import inspect
from functools import wraps
from typing import Annotated, Any

import typer

from quadranas.cli.option_groups import Command, panel_of, with_parameters
from quadranas.cli.options import DATA, LIMITS, OUTPUT, TRAINING

OwnModel = Annotated[
    str | None,
    typer.Option(
        "--own-model",
        metavar="FILE.py:FUNCTION",
        help="Code of your own model, for a space or run that was made from it. It is run.",
        rich_help_panel=DATA,
    ),
]


def with_own_model(command: Command) -> Command:
    """Give a command the option, which loads the model before the command runs."""
    own = inspect.signature(command)

    @wraps(command)
    def with_model(*args: Any, own_model: str | None = None, **options: Any) -> None:
        if own_model is None:
            return command(*args, **options)
        from quadranas.network.own_code import use_code
        from quadranas.runs.next_command import naming_own_model

        use_code(own_model)
        with naming_own_model(own_model):
            command(*args, **options)

    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own.parameters.values()]
    place = next(i for i, p in enumerate(parameters) if panel_of(p) in (TRAINING, LIMITS, OUTPUT))
    option = inspect.Parameter(
        "own_model", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=OwnModel
    )
    parameters.insert(place, option)
    return with_parameters(with_model, parameters)
