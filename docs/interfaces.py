"""Write the reference pages of the command line and of the Python API.

The first is made from the commands and options of `quadranas.cli`; the second names every public
object, and mkdocstrings fills it with their signatures and docstrings when the site is built.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer

import quadranas
from quadranas.cli.app import app

KINDS = ("Commands", "Opening and creating", "Classes", "Results", "Errors")
"""The sections of the page about the Python API."""

API_TEXT = "Every public name of `quadranas`. For examples, see [Python](../how-to/python.md)."
TYPES = {
    **{"str": "text", "int": "integer", "float": "number"},
    **{"list[str]": "text, repeatable", "list[int]": "integer, repeatable", "list[Path]": "paths"},
}

CLI_TEXT = """\
Every command has `--json`: one object on stdout, whose keys are those of [its result](results.md).
Progress goes to stderr.

| exit code | meaning |
| --- | --- |
| 0 | success |
| 1 | internal error; the traceback is kept |
| 2 | user error; the message says how to fix it |
| 3 | a budget, numerical check or accuracy limit was missed |
| 130, 143 | interrupted, terminated |"""


def command_line() -> str:
    """The commands in the order of `quadranas --help`, with their options by panel."""
    group: Any = typer.main.get_command(app)
    rows = [
        f"| [`{name}`](#quadranas-{name}) | {_first_sentence(command.help)} |"
        for name, command in group.commands.items()
    ]
    table = "\n".join(["| command | purpose |", "| --- | --- |", *rows])
    sections = [_command(name, command) for name, command in group.commands.items()]
    return "\n\n".join(["# Command line", CLI_TEXT, table, *sections])


def _first_sentence(text: str) -> str:
    return re.split(r"\.\s", " ".join(text.split()))[0].rstrip(".")


def _command(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=name)
    arguments = [_argument(p) for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(["    quadranas", name, *arguments, "[OPTIONS]"])
    text = inspect.cleandoc(command.help)
    return "\n\n".join([f"## quadranas {name}", text, usage, *_panels(command, context)])


def _argument(parameter: Any) -> str:
    name = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _panels(command: Any, context: typer.Context) -> Iterator[str]:
    """A table of arguments, then one for each panel of options."""
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        is_argument = parameter.param_type_name == "argument"
        panel = "Argument" if is_argument else parameter.rich_help_panel or "Options"
        record, text = parameter.get_help_record(context)
        name, _, kind = record.partition(" <")
        name = _argument(parameter) if is_argument else name
        kind = kind.rstrip(">").removesuffix(" range")
        text = text.removesuffix("  [required]") if is_argument else text
        cells = (c.replace("|", r"\|") for c in (f"`{name}`", TYPES.get(kind, kind), text))
        panels.setdefault(panel, []).append(f"| {' | '.join(cells)} |")
    for panel, rows in panels.items():
        yield "\n".join([f"| {panel} | value | meaning |", "| --- | --- | --- |", *rows])


def python_api() -> str:
    """The public names by kind, each as a reference that mkdocstrings fills."""
    found: dict[str, list[str]] = {}
    for value in (getattr(quadranas, n) for n in quadranas.__all__ if n != "__version__"):
        place = f"::: {value.__module__}.{value.__name__}"
        found.setdefault(_kind(value), []).append(place)
    sections = [f"## {kind}\n\n" + "\n\n".join(found[kind]) for kind in KINDS]
    return "\n\n".join(["# Python API", API_TEXT, *sections])


def _kind(value: Any) -> str:
    if inspect.isclass(value):
        if issubclass(value, Exception):
            return "Errors"
        return "Results" if value.__name__.endswith("Result") else "Classes"
    is_command = value.__module__.startswith("quadranas.commands.")
    return "Commands" if is_command else "Opening and creating"
