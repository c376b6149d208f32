"""Folders as model hubs expect them: the architecture and the weights under the usual names."""

from pathlib import Path

from quadranas.runs import layout

HUB_CONFIG = "config.json"
"""The network (`Architecture`)."""

HUB_WEIGHTS = "model.safetensors"
"""Its weights."""


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder has the files of a model hub, and not those of a run."""
    return (folder / HUB_CONFIG).is_file() and not (folder / layout.ARCHITECTURE).is_file()
