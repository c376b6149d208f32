"""Named tensors in files: safetensors, and torch files read without executing code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.files import require_readable, write_atomically


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors, atomically; shared tensors are duplicated."""
    copies = {n: t.clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    write_atomically(path, save(copies))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a torch file read with `weights_only=True`.

    In a torch file the tensors may be under the key `model` or `state_dict`.

    Raises:
        QuadranasError: the file cannot be read, is damaged, or holds more than tensors.
    """
    require_readable(path, "weights")
    content: Any
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise QuadranasError(
            f"cannot read weights {path}: {error}",
            "Name a .safetensors file, or a torch file with a state dict.",
        ) from error
    except Exception as error:  # torch raises pickle.UnpicklingError, a direct Exception
        raise QuadranasError(
            f"cannot read weights {path}: it is damaged, or holds more than tensors, which is "
            "refused because it could execute code",
            "Save it again as .safetensors, or as a plain state dict.",
        ) from error
    for key in ("model", "state_dict"):
        content = content[key] if isinstance(content, dict) and key in content else content
    items = content.items() if isinstance(content, dict) else [(None, content)]
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in items):
        raise QuadranasError(f"cannot read weights {path}: expected named tensors")
    return dict(items)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill a network, in place, from a safetensors file that `quadranas` wrote.

    Raises:
        QuadranasError: the file cannot be read, or its tensors do not fit the network.
    """
    load_tensors(model, read_tensors(Path(path)), str(path))


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill a network from named tensors, which must fit completely.

    Raises:
        QuadranasError: names the first tensor that does not fit.
    """
    wanted = model.state_dict()
    for name in (*wanted, *tensors):
        if name not in tensors or name not in wanted:
            state = "lacks" if name not in tensors else "has the unexpected"
            raise QuadranasError(
                f"{source} does not fit this network: it {state} tensor {name!r}",
                "Use the weights that were trained for this architecture.",
            )
        if tensors[name].shape != wanted[name].shape:
            raise QuadranasError(
                f"{source} does not fit this network: {name!r} has shape "
                f"{tuple(tensors[name].shape)}, expected {tuple(wanted[name].shape)}",
                "Check the number of classes and the architecture.",
            )
    model.load_state_dict(dict(tensors))
