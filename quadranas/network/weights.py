"""Named tensors in files: safetensors, and torch files read without executing code."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.files import require_readable, write_atomically
from quadranas.network.checkpoint import Found, check_values, matched, outline, unpack


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors, atomically; shared tensors are duplicated."""
    here = {name: tensor.cpu() for name, tensor in tensors.items()}
    copies = {n: t.clone(memory_format=torch.contiguous_format) for n, t in here.items()}
    write_atomically(path, save(copies))


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values of tensors."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def read_tensors(path: Path) -> Found:
    """The tensors of a `.safetensors` file, or of a torch file read with `weights_only=True`.

    In a torch file the tensors may be under one of the keys `checkpoint.CONTAINERS`.

    Raises:
        QuadranasError: the file cannot be read, is damaged, or holds more than tensors.
    """
    require_readable(path, "weights")
    content: Any
    try:
        if path.suffix == ".safetensors":
            return Found(load_file(path))
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
    return unpack(content, path)


def load_weights(model: nn.Module, path: str | Path) -> str:
    """Fill a network, in place, from a file of its tensors.

    Returns: how the tensors were found, if not under their own names; see `Found.note`.

    Raises:
        QuadranasError: the file cannot be read, or its tensors do not fit the network.
    """
    found = read_tensors(Path(path))
    return joined_notes(found.note, load_tensors(model, found.tensors, str(path)))


def joined_notes(*notes: str) -> str:
    """Several notes as one."""
    return "; ".join(note for note in notes if note)


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> str:
    """Fill a network from named tensors, which must fit completely.

    Prefixes of wrappers, such as `module.`, may be missing or added in all names.

    Returns: how the tensors were renamed; see `Found.note`.

    Raises:
        QuadranasError: names the first tensor that does not fit, that has values which are not
            finite, or a type that weights cannot have.
    """
    wanted = model.state_dict()
    tensors, note = matched(tensors, wanted)
    for name in (*wanted, *tensors):
        if name not in tensors or name not in wanted:
            state = "lacks" if name not in tensors else "has the unexpected"
            raise QuadranasError(
                f"{source} does not fit this network: it {state} tensor {name!r}",
                f"Use the weights that were trained for this architecture. Names in the file "
                f"begin with {outline(tensors)}; expected: {outline(wanted)}.",
            )
        if tensors[name].shape != wanted[name].shape:
            raise QuadranasError(
                f"{source} does not fit this network: {name!r} has shape "
                f"{tuple(tensors[name].shape)}, expected {tuple(wanted[name].shape)}",
                "Check the number of classes and the architecture.",
            )
    check_values(tensors, wanted, source)
    model.load_state_dict(dict(tensors))
    return note
