"""The command lines that messages propose: complete, and quoted for the shell."""

import math
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.latency.budget import format_ms
from quadranas.latency.device import Device, load_device
from quadranas.latency.runtimes import RUNTIMES, files_of
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import load_table, table_paths
from quadranas.runs import layout
from quadranas.runs.config_file import is_place, read_config_file
from quadranas.runs.run_device import device_of, table_of
from quadranas.space.architecture import load_architecture
from quadranas.space.space_file import load_space
from quadranas.strategies.limits import reachable_ms

DEFAULT_FORMAT = "onnx"
ROUNDING = 1.005
"""Half of the last of three significant digits: a rounded budget is not below the exact one."""


OWN_MODEL: ContextVar[str | None] = ContextVar("own_model", default=None)
"""The code of a user's own model as the user named it; never from a file."""

TAKE_OWN_MODEL = ("search", "derive", "train", "eval", "export", "build-lut")
"""Commands among the proposed ones that build such a network."""


@contextmanager
def naming_own_model(code: str | None) -> Iterator[None]:
    """Name the code of the user's own model in all command lines that are proposed meanwhile."""
    token = OWN_MODEL.set(code)
    try:
        yield
    finally:
        OWN_MODEL.reset(token)


def proposed(*words: object, **options: object) -> str:
    """A command line of quadranas, which names the user's own model if this command does.

    Args:
        words: the command and its arguments.
        options: its options, named with underscores: `True` for a flag; `None` and `False` are
            left out.
    """
    line = ["quadranas", *map(_argument, words)]
    if words and words[0] in TAKE_OWN_MODEL:
        options.setdefault("own_model", OWN_MODEL.get())
    for name, value in options.items():
        if value is not None and value is not False:
            line.append(f"--{name.replace('_', '-')}")
            line += [] if value is True else [str(value)]
    return shlex.join(line)


def _argument(word: object) -> str:
    """A word of a command line; a path that begins with a dash would be taken for an option."""
    text = str(word)
    return f"./{text}" if isinstance(word, Path) and text.startswith("-") else text


def resume_command(command: str, folder: Path, network: str = "MODEL") -> str:
    """The command line that continues a run.

    It names the run's device if that is reached through something that has to be started or
    contacted, since a run folder does not choose that.

    Args:
        network: the arguments that name the network of a training, for one that was interrupted
            before it copied its network.
    """
    is_copied = command != "train" or (folder / layout.ARCHITECTURE).is_file()
    words = [command] if is_copied else [command, *shlex.split(network)]
    path, device = _named_device(folder)
    line = proposed(
        *words, resume=True, output=folder, device=path if _has_reach(device) else None
    )
    return f"{_launcher()}{line}"


def _launcher() -> str:
    """What starts a command line in several processes, if this process is one of several."""
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return ""
    here = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    return f"torchrun --nproc-per-node={here} -m "


def train_command(folder: Path) -> str:
    """The command line that trains the network in a folder."""
    return proposed("train", folder)


def search_command(table: Path, space: str, device: str) -> str:
    """The command line that searches with a new table, for a budget in its reachable range.

    It is empty if the table was made with settings that the device's file does not have, since a
    search takes the device as its file describes it.

    Args:
        space, device: as named on the command line.
    """
    made, searched = load_table(table), load_space(space)
    if made.header.differences(load_device(device)):
        return ""
    middle_ms = math.sqrt(math.prod(reachable_ms(searched, made)))
    budget = format_ms(middle_ms * ROUNDING).replace(" ", "")
    is_usual = table == table_paths(searched.name, made.header.device)[0]
    return proposed(
        "search", device=device, space=space, table=None if is_usual else table, budget=budget
    )


def export_command(folder: Path) -> str:
    """The command line that exports the network of a run for the device it was found for.

    The format is the one of the runtime that the latency table was measured in, otherwise the one
    of the device's runtime.
    """
    path = folder / layout.ARCHITECTURE
    named, device = _named_device(folder)
    if device is None:
        named = str(folder / layout.DEVICE)
        device = device_of(folder, load_architecture(path) if path.is_file() else None)
    file_format = _format_for(device, table_of(folder))
    return proposed(
        *("export", folder),
        format=file_format,
        precision=_precision_for(device, file_format),
        device=named if _has_reach(device) else None,
    )


def _precision_for(device: Device | None, file_format: str) -> str | None:
    """The precision of the files that a device runs; `None` for the default."""
    is_int8 = device is not None and device.precision == "int8"
    return "int8" if is_int8 and "int8" in files_of(file_format).precisions else None


def _format_for(device: Device | None, table: LatencyTable | None) -> str:
    """The format of the files that a device runs, in the runtime of its table if it has one."""
    is_measured = table is not None and table.header.measurement is not None
    name = device.runtime if device is not None else None
    if table is not None and is_measured:
        name = table.header.backend
    runtime = RUNTIMES.get(name or "")
    if runtime is None or not runtime.formats:
        return DEFAULT_FORMAT
    own = device.command.format if device is not None and device.command is not None else None
    found = own or runtime.formats[0]
    # Machine code is for a device that can be measured; elsewhere nothing can check it.
    is_reached = is_measured or _has_reach(device)
    return DEFAULT_FORMAT if files_of(found).native and not is_reached else found


def _named_device(folder: Path) -> tuple[str | None, Device | None]:
    """The file of a run's device, as its user named it, and the device; `None` for others."""
    path = folder / layout.CONFIG
    try:
        device = read_config_file(path).keys.get("device") if path.is_file() else None
        if isinstance(device, str) and is_place("device", device):
            return device, load_device(device)
    except QuadranasError:
        pass
    return None, None


def _has_reach(device: Device | None) -> bool:
    """Whether something has to be started or contacted to reach a device."""
    return device is not None and device.has_way
