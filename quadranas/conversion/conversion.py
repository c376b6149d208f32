"""Making the layers of any network quadratic.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), the auto-builder's first step: every
first-order layer becomes its quadratic version.
"""

from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from quadranas.conversion.selection import Select, chosen_layers, obstacle, weight_layers
from quadranas.errors import QuadranasError
from quadranas.layers.forms import find_form
from quadranas.layers.replacement import changed
from quadranas.space.architecture import LayerChange

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """How a conversion treats one layer.

    Args:
        name: path of the layer; the first one if the network holds it in several places.
        kind: class of the layer.
        change: the replacement; None if the layer is kept.
        reason: why the layer is kept; empty if it is replaced.
    """

    name: str
    kind: str
    change: LayerChange | None = None
    reason: str = ""


def convert(
    model: Model,
    form: str = "hadamard",
    select: Select = None,
    norm: bool = False,
    keep_ends: bool = True,
) -> Model:
    """A copy of a network with its linear and convolutional layers made quadratic.

    The weights of the new layers are drawn from PyTorch's generator; all other weights are kept.
    A layer that the network holds in several places is replaced by one new layer in all of them.

    Args:
        form: kind of neuron, a key of `quadranas.layers.forms.FORMS`.
        select: the layers to convert: types; shell-style patterns of their paths, in which `*`
            also matches dots (`features.*`); predicates of path and layer; or several of these,
            of which a layer has to match one. Default: all layers.
        norm: put a BatchNorm on every branch of the new layers.
        keep_ends: keep the first and the last layer, in the order of registration.

    Raises:
        QuadranasError: an unknown form, or a selector that matches no replaceable layer; lists
            the kinds of layers that have no quadratic version.
    """
    report = plan_conversion(model, form, select, norm, keep_ends)
    return changed(model, [layer.change for layer in report if layer.change])


def plan_conversion(
    model: nn.Module,
    form: str = "hadamard",
    select: Select = None,
    norm: bool = False,
    keep_ends: bool = True,
) -> list[LayerReport]:
    """The planned treatment by `convert` of every layer with weights, in order.

    Normalisations and the branches of quadratic layers are not listed.

    Raises:
        QuadranasError: as `convert`.
    """
    if find_form(form).branches == ("c",) and not find_form(form).matrix:
        raise QuadranasError(
            f"form {form!r} is first-order, as the layers already are",
            "Name a second-order form, such as hadamard.",
        )
    layers = weight_layers(model)
    obstacles = {name: obstacle(model, name, layer) for name, layer in layers.items()}
    chosen = chosen_layers(layers, obstacles, select)
    ends = {name for name in (*list(layers)[:1], *list(layers)[-1:]) if keep_ends}
    report = []
    for name, layer in layers.items():
        reason = obstacles[name] or ("" if name in chosen else "not selected")
        reason = reason or ("the first or last layer" if name in ends else "")
        change = LayerChange(name=name, kind="quadratic", form=form, norm=norm)
        report.append(
            LayerReport(
                name=name,
                kind=type(layer).__name__,
                change=None if reason else change,
                reason=reason,
            )
        )
    if not any(layer.change for layer in report):
        raise QuadranasError(
            "no layer would be replaced: only the first or last layer of the network is selected "
            f"({', '.join(sorted(ends & chosen))}), which are kept",
            "Select other layers; in Python, keep_ends=False converts these too.",
        )
    return report
