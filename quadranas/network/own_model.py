"""A user's own models: those that were given to this process, and networks made from them.

An architecture file names its model by a digest and never says how to load it. Networks can be
built only while the model itself was given, by Python or on the command line.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.layers.replacement import changed, find_layer
from quadranas.network.modes import evaluating
from quadranas.space.architecture import Architecture, OwnModel
from quadranas.space.operation import LayerChange

_GIVEN: dict[str, nn.Module] = {}


def use_model(model: nn.Module) -> str:
    """Give one's own model to this process, so that networks made from it can be built.

    `make_space` does the same. A copy of the model is kept, with its weights.

    Returns: the digest of the model, by which spaces and architecture files name it.

    Raises:
        QuadranasError: not a model, or one that cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise QuadranasError(
            f"the model is a {type(model).__name__}, expected a torch.nn.Module",
            "Give an object, not its class or the function that builds it.",
        )
    try:
        kept = copy.deepcopy(model).cpu().eval()
    except Exception as error:  # any error of the user's code
        raise QuadranasError(f"the model cannot be copied: {first_line(error)}") from error
    digest = digest_of(kept)
    _GIVEN[digest] = kept
    return digest


def first_line(error: BaseException) -> str:
    """Type and first line of an error of the user's code."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def digest_of(model: nn.Module) -> str:
    """Identifies the layers of a model and the shapes of its tensors, not their values."""
    layers = [(name, type(module).__qualname__) for name, module in model.named_modules()]
    tensors = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
    return hashlib.sha256(json.dumps([layers, tensors]).encode()).hexdigest()[:16]


def given_model(own: OwnModel) -> nn.Module:
    """A copy of the model that was given to this process.

    Raises:
        QuadranasError: it was not given, or another one was.
    """
    if own.digest not in _GIVEN:
        others = "" if not _GIVEN else "; the model that was given has other layers or shapes"
        raise QuadranasError(
            f"the network is made from your own model ({own.source}), whose code is in no file "
            f"of quadranas{others}",
            "Name the code again with --own-model FILE.py:FUNCTION, or call "
            "quadranas.use_model(model) first.",
        )
    return copy_of(own.digest)


def copy_of(digest: str) -> nn.Module:
    """A copy of a model that was given to this process."""
    return copy.deepcopy(_GIVEN[digest])


def changes_of(architecture: Architecture) -> Iterator[LayerChange]:
    """What is changed in a user's own model to make a network."""
    assert architecture.model is not None
    kept = {block.name for block in architecture.blocks}
    for name, layer in architecture.model.parts.items():
        if name not in kept:
            is_added = name in architecture.model.added
            yield LayerChange(name=layer, kind="zeroed" if is_added else "removed")
    for op in architecture.ops():
        yield from op.own_part.changes


def changed_part(part: nn.Module, layer: str, changes: Iterable[LayerChange]) -> nn.Module:
    """A copy of a part of a model with some changes.

    Args:
        layer: path of the part in the model; the changes name their layers by such paths.
    """
    inside = []
    for change in changes:
        paths = [f"part{path[len(layer) :]}" for path in (change.name, *change.followers)]
        update = {"name": paths[0], "followers": tuple(paths[1:])}
        inside.append(change.model_copy(update=update))
    # A change may replace the part itself, which needs something around it.
    return changed(nn.ModuleDict({"part": part}), inside)["part"]


def build_own(architecture: Architecture) -> nn.Module:
    """The user's own model with the changes of an architecture, with its weights.

    Raises:
        QuadranasError: the model was not given to this process, or lacks a layer.
    """
    assert architecture.model is not None
    model = given_model(architecture.model)
    return changed(model, changes_of(architecture))


def restore_weights(own: OwnModel, tensors: Mapping[str, Tensor]) -> None:
    """Give the model that was given to this process other weights.

    Raises:
        QuadranasError: it was not given.
    """
    given_model(own)
    _GIVEN[own.digest].load_state_dict(dict(tensors))


@torch.no_grad()
def check_own_resolution(own: OwnModel, resolution: int, num_classes: int) -> None:
    """Check that a user's own model takes images of a size.

    Raises:
        QuadranasError: it fails, or does not return class scores.
    """
    model = given_model(own)
    hint = f"Set train_resolution to the size that the space was made for, not {resolution}."
    try:
        found = model(torch.zeros(2, 3, resolution, resolution))
    except Exception as error:  # any error of the user's code
        raise QuadranasError(
            f"your model fails on images of {resolution} pixels: {first_line(error)}", hint
        ) from error
    if not isinstance(found, Tensor) or found.shape != (2, num_classes):
        raise QuadranasError(
            f"your model returns no class scores for images of {resolution} pixels", hint
        )


@torch.no_grad()
def part_inputs(model: nn.Module, layers: tuple[str, ...], resolution: int) -> dict[str, Tensor]:
    """The inputs that parts of a model get for an image of zeros."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name] = inputs[0].detach().contiguous()

        return find_layer(model, name).register_forward_pre_hook(keep)

    handles = [watch(name) for name in layers]
    try:
        with evaluating(model):
            model(torch.zeros(1, 3, resolution, resolution))
    finally:
        for handle in handles:
            handle.remove()
    return found
