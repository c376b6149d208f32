"""Finding the architecture that a model argument names, without importing torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from quadranas.errors import QuadranasError
from quadranas.files import refuse_links
from quadranas.runs import layout
from quadranas.runs.config_file import recorded_command
from quadranas.runs.hub_folder import HUB_CONFIG, is_hub_folder
from quadranas.runs.next_command import resume_command
from quadranas.space.architecture import Architecture, load_architecture
from quadranas.space.catalog import find_architecture, find_folder

if TYPE_CHECKING:
    from quadranas.runs.stored_network import Model


def find_model(name: str) -> tuple[Architecture, Path | None]:
    """The architecture that a name or path stands for, and the run folder that holds it, if any.

    A folder of a model hub holds an architecture and is no run folder.

    Raises:
        QuadranasError: an unknown name, an unfinished run, or a folder with links out of it.
    """
    folder = find_folder(name)
    if folder is not None:
        refuse_links(folder)
        if is_hub_folder(folder):
            return load_architecture(folder / HUB_CONFIG), None
        if not (folder / layout.ARCHITECTURE).is_file():
            raise _without_architecture(folder)
    return find_architecture(name), folder


def architecture_of(model: "Model") -> Architecture:
    """The architecture of a model argument.

    Raises:
        QuadranasError: an unknown name, or an unfinished run.
    """
    if isinstance(model, Architecture):
        return model
    return find_model(str(model))[0] if isinstance(model, str | Path) else model.architecture


def _without_architecture(folder: Path) -> QuadranasError:
    command = recorded_command(folder)
    return QuadranasError(
        f"{folder} contains no {layout.ARCHITECTURE}",
        f"If the run is unfinished, continue it with: {resume_command(command, folder)}"
        if command in layout.RESUMABLE
        else "Name a run folder, or an architecture file.",
    )
