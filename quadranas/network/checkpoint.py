"""Finding a network's tensors in a checkpoint: containers, prefixes of names, and their values."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quadranas.errors import QuadranasError, some

CONTAINERS = (
    *("model", "state_dict", "model_state_dict", "net", "network", "module", "weights", "params"),
    *("model_ema", "state_dict_ema", "ema", "ema_state_dict", "params_ema"),
)
"""Keys under which training programs store the tensors of a network. Of several the first is
used, so that averaged weights are used only where there are no others."""

MAX_DEPTH = 8
"""Limit on containers inside each other; one may contain itself."""

WRAPPERS = ("module", "model", "_orig_mod", "net", "network", "_forward_module")
"""Names of the attribute in which wrappers hold a network: DataParallel and averaged models,
Lightning modules, compiled modules ..."""

PREFIX = re.compile(rf"^(?:(?:{'|'.join(WRAPPERS)})\.)+")
COMPILED = "_orig_mod."
COUNTERS = frozenset(("n_averaged",))
"""Tensors that wrappers add and that belong to no network."""


class Found(NamedTuple):
    """The tensors of a checkpoint.

    Args:
        tensors: by their names.
        note: where they were found and how they were renamed, for messages; may be empty.
    """

    tensors: dict[str, Tensor]
    note: str = ""


def unpack(content: Any, path: object) -> Found:
    """The named tensors in the content of a torch file.

    Raises:
        QuadranasError: there are none, or several groups of tensors under unknown keys.
    """
    keys: list[str] = []
    others: list[str] = []
    while not _is_state(content) and len(keys) <= MAX_DEPTH:
        if not isinstance(content, Mapping):
            raise _no_tensors(content, path)
        states = [key for key, value in content.items() if _holds_state(value)]
        known = [key for key in CONTAINERS if key in states]
        if not known and len(states) != 1:
            raise _no_tensors(content, path)
        key = (known or states)[0]
        keys.append(str(key))
        others += [str(other) for other in states if other != key]
        content = content[key]
    if not _is_state(content):
        raise _no_tensors(content, path)
    nested = next((name for name, tensor in content.items() if tensor.is_nested), None)
    if nested is not None:
        raise QuadranasError(
            f"cannot read weights {path}: {nested!r} is a nested tensor, which has no shape",
            "Save the trained weights again, as dense tensors.",
        )
    note = f"tensors under the key {'.'.join(keys)!r}" if keys else ""
    return Found(dict(content), note + (f"; not used: {', '.join(others)}" if others else ""))


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def _holds_state(content: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether something is named tensors, or a container of them under a known key.

    Args:
        depth: number of containers around the tensors at most.
    """
    if _is_state(content):
        return True
    known = isinstance(content, Mapping) and any(key in content for key in CONTAINERS)
    return known and depth > 0 and any(_holds_state(v, depth - 1) for v in content.values())


def _no_tensors(content: Any, path: object) -> QuadranasError:
    if not isinstance(content, Mapping):
        found = f"a {type(content).__name__}"
    else:
        keys = [f"{key!r} ({type(value).__name__})" for key, value in content.items()]
        found = f"the keys {some(keys, 8)}" if keys else "no keys"
    return QuadranasError(
        f"cannot read weights {path}: expected named tensors, or a dictionary that holds them "
        f"under one of the keys {', '.join(CONTAINERS)}; found {found}",
        "Save the state dict of the network alone: torch.save(model.state_dict(), FILE).",
    )


def matched(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> Found:
    """Tensors under the names that a network gives them, apart from prefixes of wrappers.

    Tensors without a counterpart in the network keep their names.
    """
    names = set(wanted)
    if names == set(tensors):
        return Found(dict(tensors))
    plain = [name for name in tensors if name in names or name not in COUNTERS]
    found = {_bare(name): name for name in plain}
    targets = {_bare(name): name for name in names}
    if len(found) != len(plain) or len(targets) != len(names):  # the prefixes mean something
        return Found(dict(tensors))
    renamed = {targets.get(bare, name): tensors[name] for bare, name in found.items()}
    pairs = zip(found.values(), renamed, strict=True)
    name, target = next(((old, new) for old, new in pairs if new != old), ("", ""))
    if not name:
        return Found(renamed)
    return Found(renamed, f"names without prefixes of wrappers ({name!r} is {target!r})")


def without_prefixes(tensors: Mapping[str, Tensor]) -> Found:
    """Tensors under their names without the prefixes of wrappers, if all names have the same."""
    names = [name for name in tensors if name not in COUNTERS]
    prefixes = {found[0] if (found := PREFIX.match(name)) else "" for name in names}
    if len(prefixes) != 1 or prefixes == {""}:
        return Found(dict(tensors))
    (prefix,) = prefixes
    plain = {name.removeprefix(prefix).replace(COMPILED, ""): tensors[name] for name in names}
    return Found(plain, f"names without the prefix {prefix!r}")


def _bare(name: str) -> str:
    return PREFIX.sub("", name).replace(COMPILED, "")


def check_values(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Check that tensors have values that weights can have.

    Args:
        tensors: by the names of the network.
        wanted: the network's own tensors.

    Raises:
        QuadranasError: names the first tensor with infinite or undefined values, or of a type
            that the network's tensor cannot take.
    """
    for name, tensor in tensors.items():
        if name not in wanted:
            continue
        reason = _unsuitable(tensor, wanted[name].dtype)
        if reason:
            raise QuadranasError(
                f"{source} does not fit this network: tensor {name!r} {reason}",
                "Save the trained weights again, as finite floating-point numbers.",
            )


def _unsuitable(tensor: Tensor, wanted: torch.dtype) -> str:
    """Why a tensor cannot be a weight of a type; empty if it can."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        state = "quantized" if tensor.is_quantized else "without data" if tensor.is_meta else ""
        return f"is {state or str(tensor.layout).removeprefix('torch.')}, not a dense array"
    floating = tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if wanted.is_floating_point or wanted.is_complex:
        if not floating and not (wanted.is_complex and tensor.is_complex()):
            return f"has type {kind}; accepted: float16, bfloat16, float32, float64"
        return _not_finite(tensor.to(wanted), str(wanted).removeprefix("torch."))
    integer = not (tensor.is_floating_point() or tensor.is_complex())
    if wanted is torch.bool or tensor.dtype is torch.bool:
        return "" if wanted is tensor.dtype else f"has type {kind}, expected {wanted}"
    whole = floating and bool((tensor == tensor.floor()).all()) and not _not_finite(tensor, "")
    return "" if integer or whole else f"has type {kind} where whole numbers belong"


def _not_finite(tensor: Tensor, kind: str) -> str:
    wrong = int((~tensor.isfinite()).sum())
    return f"has {wrong} of {tensor.numel()} values that are NaN or infinite in {kind}" * (
        wrong > 0
    )


def outline(names: Iterable[str]) -> str:
    """The first parts of some names, for messages."""
    roots = dict.fromkeys(".".join(name.split(".")[:2]) for name in names)
    return some(list(roots), 6)
