"""The file `config.yaml`: which command wrote it, in which format version, and its keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadranas.files import read_yaml
from quadranas.runs import layout
from quadranas.validation import Frozen, refuse_newer

FORMAT_VERSION = 1


class Header(Frozen):
    """The keys at the top of `config.yaml`; all others are keys of the command's configuration.

    Args:
        command: the command that wrote the file; null for a file written by hand.
        format_version: version of the file format.
    """

    command: str | None = None
    format_version: int = FORMAT_VERSION


PATHS = ("data", "val", "table", "teacher_weights")
NAMES_OR_PATHS = ("device", "space", "recipe")
"""Keys with a name, or with the path of a YAML file."""


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file as read.

    Args:
        command: the command that wrote it; None for a file written by hand, and for one of
            version 0.1.0 that is not recognised.
        keys: the configuration, not yet checked.
    """

    path: Path
    command: str | None
    keys: dict[str, Any]


def with_header(command: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `config.yaml` for the configuration of a command; paths become absolute."""
    placed = {key: absolute(key, value) for key, value in keys.items()}
    return {**Header(command=command).model_dump(), **placed}


OWN_INIT = "own-model"
"""The value of `init` for a user's own model whose weights are trained."""


def absolute(key: str, value: Any) -> Any:
    """The value of a key with absolute paths; values without paths stay as they are."""
    if key == "also" and isinstance(value, list | tuple):
        pairs = (str(entry).rpartition("=") for entry in value)
        return [f"{absolute('device', device)}={budget}" for device, _, budget in pairs]
    return str(Path(value).absolute()) if value and is_place(key, value) else value


def is_place(key: str, value: Any) -> bool:
    """Whether the value of a key is the path of a file or folder."""
    if not isinstance(value, str):
        return False
    if key == "teacher":  # a run folder, a file, or a name
        return not value.startswith("timm:") and Path(value).exists()
    if key == "init":  # the same, and the run folder keeps a copy
        return not value.startswith("timm:") and value != OWN_INIT
    return key in PATHS or (key in NAMES_OR_PATHS and value.endswith((".yaml", ".yml")))


def same_place(one: str, other: str) -> bool:
    """Whether two paths, absolute or relative to the working folder, lead to the same place."""
    return Path(one).resolve() == Path(other).resolve()


def read_config_file(path: Path) -> ConfigFile:
    """Read a configuration file.

    Raises:
        QuadranasError: the file is unreadable, not a mapping, or from a newer version.
    """
    content = read_yaml(path, "configuration")
    refuse_newer(content, FORMAT_VERSION, path)
    command = content.get("command") or _command_of_0_1_0(content)
    keys = {key: value for key, value in content.items() if key not in Header.model_fields}
    if _is_search_of_0_1_0(content):
        keys.setdefault("supernet", {"weights": "independent"})
    return ConfigFile(path, str(command) if command else None, keys)


def recorded_command(folder: Path) -> str | None:
    """The command that wrote a folder's `config.yaml`; None if there is no such file."""
    path = folder / layout.CONFIG
    return read_config_file(path).command if path.is_file() else None


def _is_search_of_0_1_0(content: Mapping[str, Any]) -> bool:
    """Whether version 0.1.0 wrote a file for a search: it has every key of that version."""
    keys = {"device", "space", "schedule", "gates", "augment", "checkpoint_seconds", "inspect"}
    return not content.get("command") and keys <= content.keys()


def _command_of_0_1_0(content: Mapping[str, Any]) -> str | None:
    """The command of a file without the key `command`, as version 0.1.0 wrote it."""
    if "device" in content or "space" in content:
        return "search"
    return "train" if "epochs" in content else None
