"""Quadratic adaptation of a pre-trained network: build, train, save and load it.

Source: QuadraNet V2, Xu et al., 2024 (arXiv:2405.03192); the layer: `quadranas.layers.adapted`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar, get_args

from pydantic import Field
from torch import nn

from quadranas.conversion.selection import Select, select_layers
from quadranas.errors import QuadranasError, unknown
from quadranas.files import read_json, write_json
from quadranas.layers.adapted import AdaptedLayer, adapted_layers
from quadranas.layers.replacement import changed
from quadranas.network.weights import load_weights, save_tensors
from quadranas.space.architecture import LayerChange
from quadranas.validation import Frozen, validate

Trained = Literal["all", "quadratic"]
Model = TypeVar("Model", bound=nn.Module)
WEIGHTS, CHANGES = "adapted.safetensors", "adapted.json"


class AdaptedModel(Frozen):
    """The changes that turn a first-order network into an adapted one.

    Args:
        changes: the layers that are adapted.
    """

    changes: tuple[LayerChange, ...] = Field(min_length=1)


def adapt(
    model: Model,
    rank: int = 1,
    dilation: int = 2,
    where: Select = None,
    train: Trained = "all",
) -> Model:
    """A copy of a pre-trained network with a low-rank quadratic term in its layers.

    Before training the copy computes exactly what the network does. The weights of the terms are
    drawn from PyTorch's generator.

    Args:
        model: any network; its linear layers and zero-padded convolutions can be adapted.
        rank: rank of the terms; at most the `max_rank` of the narrowest adapted layer.
        dilation: dilation of the terms of convolutions, relative to that of the convolution.
        where: types of layers, patterns of their names, or a function of name and layer.
            Default: all layers.
        train: see `set_trained`.

    Raises:
        QuadranasError: no layer is selected, or a rank, dilation or `train` does not fit.
    """
    changes = adaptations(select_layers(model, where), rank, dilation)
    adapted = changed(model, changes)
    set_trained(adapted, train)
    return adapted


def adaptations(names: Iterable[str], rank: int = 1, dilation: int = 2) -> tuple[LayerChange, ...]:
    """One record for each layer to adapt, all with the same rank and dilation.

    Raises:
        QuadranasError: a rank or dilation out of range.
    """
    options = {"kind": "adapted", "rank": rank, "dilation": dilation}
    return tuple(validate(LayerChange, {"name": n, **options}, f"layer {n!r}") for n in names)


def quadratic_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the quadratic terms in a network's adapted layers, by name."""
    return {
        f"{path}.{part}.{name}": parameter
        for path, layer in adapted_layers(model).items()
        for part, module in (("product", layer.product), ("mix", layer.mix))
        for name, parameter in module.named_parameters()
    }


def set_trained(model: nn.Module, train: Trained) -> None:
    """Choose the parameters that training changes: all, or those of the quadratic terms.

    Running statistics of BatchNorm are not parameters: they follow the data in training either
    way, because the quadratic terms change the input of the norms. To keep them, put the norms
    into evaluation mode.

    Raises:
        QuadranasError: an unknown choice, or `quadratic` for a network without adapted layers.
    """
    if train not in get_args(Trained):
        raise unknown("train", train, get_args(Trained))
    quadratic = quadratic_parameters(model)
    if train == "quadratic" and not quadratic:
        raise QuadranasError(
            "the network has no adapted layer, so it has no quadratic terms to train",
            "Adapt it first, or train all of it.",
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(train == "all" or name in quadratic)


def save_adapted(model: nn.Module, folder: str | Path) -> None:
    """Write an adapted network: its tensors and the list of adapted layers.

    Raises:
        QuadranasError: no adapted layer, or a folder that cannot be written.
    """
    changes = [_record(path, layer) for path, layer in adapted_layers(model).items()]
    if not changes:
        raise QuadranasError("the network has no adapted layer", "Adapt it first.")
    content = AdaptedModel(changes=tuple(changes)).model_dump(mode="json", exclude_defaults=True)
    save_tensors(model.state_dict(), Path(folder) / WEIGHTS)
    write_json(Path(folder) / CHANGES, content)


def load_adapted(model: Model, folder: str | Path) -> Model:
    """An adapted copy of a first-order network, with the tensors of a folder.

    Args:
        model: the network that was adapted; only the shapes of its weights matter.
        folder: the folder that `save_adapted` wrote.

    Raises:
        QuadranasError: the files cannot be read, or belong to another network; names the layer or
            tensor.
    """
    path = Path(folder) / CHANGES
    record = validate(AdaptedModel, read_json(path, "adapted network"), path)
    adapted = changed(model, record.changes)
    load_weights(adapted, Path(folder) / WEIGHTS)
    return adapted


def _record(path: str, layer: AdaptedLayer) -> LayerChange:
    return LayerChange(name=path, kind="adapted", rank=layer.rank, dilation=layer.term_dilation)
