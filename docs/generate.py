"""Write the reference pages in docs/reference/ from the models of the package.

Every key comes from a field of a model, and its description from `Args:` in the docstring of the
model's class; the pages of the command line and of the Python API come from `interfaces.py`.
`make reference` calls this script; `tests/test_reference.py` compares the pages.
"""

import ast
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import quadranas.commands
from docs import interfaces
from quadranas.conversion.adaptation import AdaptedModel
from quadranas.data.preprocessing import Preprocessing
from quadranas.deployment.manifest import Manifest
from quadranas.inspection.records import StepRecord
from quadranas.latency.device import Device, load_device, shipped_devices
from quadranas.latency.table import LatencyTable
from quadranas.runs import config, layout, results
from quadranas.runs.conditions import Conditions
from quadranas.runs.config_file import Header
from quadranas.runs.fronts import Fronts
from quadranas.runs.pretrained_record import PretrainedRecord
from quadranas.runs.recipe import Recipe
from quadranas.runs.records import Epoch
from quadranas.space.architecture import Architecture
from quadranas.space.own_space_file import OwnSpaceFile
from quadranas.space.space_file import SpaceFile
from quadranas.strategies.scores import GateScores
from quadranas.validation import CommandError, CommandResult

Model: TypeAlias = type[BaseModel]

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by `make reference` from the code; edit its docstrings instead. -->"
BASES = (
    *(config.DataConfig, config.TrainingConfig),
    *(results.StoredResult, results.TrainedResult),
)
"""Models that only others are derived from."""

NAMES = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", Any: "any value"}
BOUNDS = {"ge": ">= {}", "gt": "> {}", "le": "<= {}", "lt": "< {}", "pattern": "matching `{}`"}
UNITS = {
    r"^(\w*_)?ms: ": "ms",
    r"^\w*_us: ": "us",
    r"^\w*_seconds: ": "s",
    r"^\w*_bytes\w*: ": "bytes",
    r"^\w*gb_per_s: ": "GB/s",
    r"^\w*_db: ": "dB",
    r"^\w*_mhz: ": "MHz",
    r"^\w*_temperature_c: ": "°C",
    r"\bGMAC/s\b": "GMAC/s",
    r"\bpercentage points\b": "percentage points",
    r"\bin pixels\b": "pixels",
    r"\bin bytes\b": "bytes",
    r"\b(share of|fraction|from 0(\.5)? to 1|relative)\b": "fraction",
}
"""Units by the key and the description that they are found in."""


@dataclass(frozen=True)
class Page:
    """A page about models and the models inside them, with a text before them."""

    name: str
    title: str
    models: Sequence[Model]
    text: str = ""


def pages() -> tuple[Page, ...]:
    """All pages; a model that several of them need is on the first one."""
    modules = (
        import_module(m.name)
        for m in pkgutil.iter_modules(quadranas.commands.__path__, "quadranas.commands.")
    )
    found = [model for module in (results, *modules) for model in _models(module, CommandResult)]
    records = (GateScores, Conditions, Epoch, Fronts, Preprocessing, PretrainedRecord, StepRecord)
    return (
        Page("configuration", "Configuration", (Header, *_models(config, config.DataConfig))),
        Page("recipe", "Recipes", (Recipe,)),
        Page("space", "Search spaces", (SpaceFile, OwnSpaceFile)),
        Page("device", "Devices", (Device,), _device_table()),
        Page("architecture", "Architectures", (Architecture, AdaptedModel)),
        Page("table", "Latency tables", (LatencyTable,)),
        Page("run-folder", "Run folders", records, _file_table()),
        Page("results", "Results of the commands", (*found, CommandError)),
        Page("bundle", "Manifests of bundles", (Manifest,)),
    )


def _models(module: Any, base: Model) -> list[Model]:
    """The models derived from `base` that a module defines."""
    models = [m for m in vars(module).values() if isinstance(m, type) and issubclass(m, base)]
    return [m for m in models if m.__module__ == module.__name__ and m not in BASES]


def run_files() -> dict[str, str]:
    """What the files in a run folder hold, by their names: the texts in `layout`."""
    found: dict[str, str] = {}
    for statement, below in pairwise(ast.parse(inspect.getsource(layout)).body):
        if isinstance(statement, ast.Assign):
            name = getattr(layout, ast.unparse(statement.targets[0]))
            text = getattr(getattr(below, "value", None), "value", None)
            if isinstance(name, str):
                found[name] = " ".join(text.split()) if isinstance(text, str) else ""
    return found


def _file_table() -> str:
    rows = "".join(f"\n| `{name}` | {text} |" for name, text in sorted(run_files().items()))
    return f"| file | contents |\n| --- | --- |{rows}"


def _device_table() -> str:
    """The shipped devices with an analytic model, its source, and its error on new networks."""
    rows = [
        "The shipped devices that have an analytic model; `quadranas devices` lists them too.",
        "",
        "| device | hardware | modelled runtime | precision | fitted to | expected error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for device in map(load_device, shipped_devices()):
        if (model := device.analytic) is not None:
            cells = (f"`{device.name}`", device.title, model.runtime, device.precision)
            rows.append(f"| {' | '.join((*cells, model.fitted_to, model.expected_error))} |")
    return "\n".join(rows)


def descriptions(model: Model) -> dict[str, str]:
    """The descriptions of a model's fields, from the docstrings of its class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        _, _, part = inspect.cleandoc(vars(base).get("__doc__") or "").partition("\nArgs:\n")
        for match in re.finditer(r"^    ([\w, ]+): (.*(?:\n {8}.*)*)", part, re.MULTILINE):
            found |= dict.fromkeys(match[1].split(", "), " ".join(match[2].split()))
    return {name: found[name] for name in model.model_fields if name in found}


def unit(name: str, description: str) -> str:
    """The unit of a key; empty if it has none."""
    text = f"{name}: {description}"
    return next((unit for words, unit in UNITS.items() if re.search(words, text)), "")


def models_in(annotation: Any) -> Iterator[Model]:
    """The models in an annotation, such as `tuple[Stage, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def with_inner(model: Model) -> Iterator[Model]:
    """A model and, depth first, the models of its fields."""
    yield model
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            yield from with_inner(inner)


class Writer:
    """Writes models as Markdown; a type that is a model becomes a link to its place."""

    def __init__(self, pages: Sequence[Page]) -> None:
        self.pages = pages
        self.places: dict[Model, str] = {}
        for page in pages:
            for model in (inner for root in page.models for inner in with_inner(root)):
                self.places.setdefault(model, page.name)

    def files(self) -> dict[str, str]:
        """The text of every page, and of the index, by file name."""
        index = [
            *("# Reference", ""),
            "- [Command line](cli.md): commands, arguments, options, exit codes",
            "- [Python API](api.md): functions, results, errors",
            *("", "Files and results, every key with its type, limits, default and unit:", ""),
        ]
        for page in self.pages:
            names = ", ".join(f"`{m.__name__}`" for m in page.models)
            index.append(f"- [{page.title}]({page.name}.md): {names}")
        texts = {f"{page.name}.md": self._page(page) for page in self.pages}
        others = {
            "README.md": "\n".join(index),
            "cli.md": interfaces.command_line(),
            "api.md": interfaces.python_api(),
        }
        return {name: f"{NOTE}\n\n{text}\n" for name, text in others.items()} | texts

    def _page(self, page: Page) -> str:
        sections = [NOTE, f"# {page.title}", *([self._linked(page.text)] if page.text else [])]
        sections += [self._section(m) for m, place in self.places.items() if place == page.name]
        return "\n\n".join(sections) + "\n"

    def _section(self, model: Model) -> str:
        text = self._linked(inspect.cleandoc(model.__doc__ or "").partition("\n\nArgs:")[0])
        described = descriptions(model)
        rows = ["| key | type | default | unit | description |", "| --- | --- | --- | --- | --- |"]
        for name, field in model.model_fields.items():
            words = described.get(name, "")
            kind = self._type(Annotated[(field.annotation, *field.metadata, None)])
            cells = (f"`{name}`", kind, _default(field), unit(name, words), self._linked(words))
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        return "\n".join([f"## {model.__name__}", "", text, "", *rows])

    def _linked(self, text: str) -> str:
        """A text in which the names of models are links; `None` is null in files."""
        for model in self.places:
            text = text.replace(f"`{model.__name__}`", self._link(model))
        return re.sub(r"`None`|\bNone\b", "null", text)

    def _link(self, model: Model) -> str:
        return f"[{model.__name__}]({self.places[model]}.md#{model.__name__.lower()})"

    def _inner(self, annotation: Any) -> str:
        kind = self._type(annotation)
        return f"({kind})" if " or " in kind or ", " in kind else kind

    def _type(self, annotation: Any) -> str:
        origin, inner = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return ", ".join([self._type(inner[0]), *_bounds(inner[1:])])
        if origin in (Union, UnionType):
            return " or ".join(map(self._type, inner))
        if origin is Literal:
            return " or ".join(f"`{value}`" for value in inner)
        if origin in (tuple, list):
            items = [self._inner(item) for item in inner if item is not Ellipsis]
            if origin is list or Ellipsis in inner:
                return f"list of {items[0]}"
            same = len(set(items)) == 1
            return f"list of {len(items)}: {items[0] if same else ', '.join(items)}"
        if origin is dict:
            return f"mapping of {self._inner(inner[0])} to {self._inner(inner[1])}"
        if annotation is NoneType:
            return "null"
        if annotation in self.places:
            return self._link(annotation)
        return "path" if issubclass(annotation, PurePath) else NAMES[annotation]


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    """The limits on a value in the metadata of its annotation."""
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _bounds(item.metadata)
        for key, text in BOUNDS.items():
            if (limit := getattr(item, key, None)) is not None:
                yield text.format(limit if isinstance(limit, str) else f"{limit:.10g}")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{json.dumps(value)}`"


def write() -> None:
    """Write all pages, and remove those that no longer exist."""
    for old in FOLDER.glob("*.md"):
        old.unlink()
    for name, text in Writer(pages()).files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
