"""Pre-trained weights for a network, from a file or from timm; also those of a ConvNeXt.

Source: QuadraNet V2, Xu et al., 2024 (arXiv:2405.03192): first-order weights as the primary term;
ConvNeXt, Liu et al., CVPR 2022 (arXiv:2201.03545), whose blocks have the layers of a QuadraBlock.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.extras import require_extra
from quadranas.layers.replacement import quadratic_layers
from quadranas.network.checkpoint import Found, check_values, matched, without_prefixes
from quadranas.network.published import load_published_tensors, published_name
from quadranas.network.weights import joined_notes, load_tensors, read_tensors
from quadranas.validation import Frozen

TIMM = "timm:"


class WeightReport(Frozen):
    """Which tensors of a checkpoint were used.

    Args:
        used: names of the checkpoint's tensors, and of the network's tensors they filled.
        unused: names of the checkpoint's other tensors, and why they were not used.
        untouched: the network's tensors that the checkpoint does not hold; they are unchanged.
        note: where the tensors were found in the file, and how they were renamed; empty if they
            are at its top, under their own names.
    """

    used: dict[str, str]
    unused: dict[str, str]
    untouched: tuple[str, ...]
    note: str = ""


def load_pretrained(model: nn.Module, source: str | Path) -> WeightReport:
    """Fill a network, in place, from weights that were trained elsewhere.

    A checkpoint of the network itself, under its own names or those of the published QuadraNets,
    must fit completely. From a checkpoint of a ConvNeXt, the tensors that fit a QuadraNet are used
    (`load_convnext`). Checkpoints are told apart by the names and shapes of all their tensors.
    Containers such as `state_dict` and prefixes such as `module.` are recognised.

    Args:
        source: a `.safetensors` file, a torch file of tensors, or `timm:NAME` for pre-trained
            weights that timm downloads.

    Raises:
        QuadranasError: the file cannot be read, holds more than tensors, or does not fit; names
            the tensor and both shapes, or the values that are not finite.
        MissingExtraError: timm is needed and not installed.
    """
    text = str(source)
    from_timm = text.startswith(TIMM)
    found = Found(load_timm(text).tensors) if from_timm else read_tensors(Path(source))
    tensors, own = found.tensors, model.state_dict()
    published = _published_names(own)
    if not _same(tensors, own) and published:
        if _same(tensors, published):
            note = load_published_tensors(model, tensors, text)
            note = joined_notes(found.note, note)
            return WeightReport(used=published, unused={}, untouched=(), note=note)
        plain = without_prefixes(tensors)
        if _is_convnext(plain.tensors):
            report = load_convnext(model, plain.tensors, text)
            note = joined_notes(found.note, plain.note)
            return report.model_copy(update={"note": note})
    note = joined_notes(found.note, load_tensors(model, tensors, text))
    return WeightReport(used={name: name for name in own}, unused={}, untouched=(), note=note)


def _same(tensors: Mapping[str, Tensor], names: Collection[str]) -> bool:
    """Whether tensors are those of some names, apart from prefixes of wrappers."""
    return set(matched(tensors, names).tensors) == set(names)


def _published_names(own: Iterable[str]) -> dict[str, str]:
    """A QuadraNet's tensors by their published names; empty for other networks."""
    try:
        return {published_name(name): name for name in own}
    except ValueError:
        return {}


def _is_convnext(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are those of a ConvNeXt: a stem, and nothing but its blocks in the stages.

    A block has a depthwise kernel, a norm, and two matrices with that many inputs and outputs.
    """
    shapes = {_official_name(name): tuple(tensor.shape) for name, tensor in tensors.items()}
    blocks = {m[0] for name in shapes if (m := re.match(r"stages\.\d+\.\d+\.", name))}
    if not blocks or len(shapes.get("downsample_layers.0.0.weight", ())) != 4:
        return False

    def fits(block: str) -> bool:
        parts = ("dwconv", "norm", "pwconv1", "pwconv2")
        kernel, norm, first, second = (shapes.get(f"{block}{p}.weight", ()) for p in parts)
        channels = kernel[:1]
        depthwise = len(kernel) == 4 and kernel[1] == 1
        return depthwise and norm == channels == first[1:2] == second[:1]

    return all(map(fits, blocks))


def load_convnext(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> WeightReport:
    """Fill a QuadraNet with the tensors of a ConvNeXt, where the shapes agree.

    The depthwise weights go into branch `c` of the quadratic convolutions. Branch `a` is set to
    zero there, and so the second-order term is exactly zero. LayerNorm, the two linear layers and
    the layer scale of a ConvNeXt block go to the second half of the QuadraBlock; stem,
    downsampling, last norm and head to their counterparts. The norm and layer scale of the first
    half have no counterpart, so the two networks do not compute the same function.

    Args:
        tensors: under the official names (`downsample_layers.0.0.weight`,
            `stages.0.0.dwconv.weight` ...) or timm's (`stem.0.weight`,
            `stages.0.blocks.0.conv_dw.weight` ...).
        source: the checkpoint, for messages.

    Raises:
        QuadranasError: the network is no QuadraNet, or no matrix or kernel fits; names the first
            one and both shapes.
    """
    own = model.state_dict()
    try:
        wanted = {_convnext_name(name): name for name in own}
    except ValueError as error:
        raise QuadranasError(
            f"{source} is a ConvNeXt; its tensors fit only QuadraNets; this network is not one",
            "Use a QuadraNet, or weights trained for this network.",
        ) from error
    used, unused = _matched(tensors, wanted, own)
    if not any(tensors[name].dim() > 1 for name in used):
        name, why = next(iter(unused.items()))
        raise QuadranasError(
            f"{source} does not fit this QuadraNet: none of its matrices and kernels does; "
            f"first: {name!r}: {why}",
            "Choose a QuadraNet of the same widths.",
        )
    check_values({target: tensors[name] for name, target in used.items()}, own, source)
    with torch.no_grad():
        for name, target in used.items():
            own[target].copy_(tensors[name])
    zeroed = _zero_products(model, set(used.values()))
    untouched = (name for name in own if name not in {*used.values(), *zeroed})
    return WeightReport(used=used, unused=unused, untouched=tuple(untouched))


def _matched(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, str], own: Mapping[str, Tensor]
) -> tuple[dict[str, str], dict[str, str]]:
    """The counterparts of a ConvNeXt's tensors, and why the others have none, by their names.

    Args:
        wanted: names of the network's own tensors by the official name of their counterpart.
    """
    used, unused = {}, {}
    for name, tensor in tensors.items():
        target = wanted.get(_official_name(name))
        if target is None:
            unused[name] = f"shape {tuple(tensor.shape)}; the network has no counterpart"
        elif own[target].shape != tensor.shape:
            shape = tuple(own[target].shape)
            unused[name] = f"shape {tuple(tensor.shape)}; {target!r} has {shape}"
        else:
            used[name] = target
    return used, unused


def _zero_products(model: nn.Module, filled: set[str]) -> list[str]:
    """Zero branch `a` wherever `c` was filled, and return the names of the zeroed tensors.

    Branch `b` keeps its random weights, so that the first gradient reaches `a`.
    """
    zeroed = []
    for path, layer in quadratic_layers(model).items():
        if f"{path}.c.weight" in filled:
            for name, parameter in layer.branches["a"].named_parameters():
                nn.init.zeros_(parameter)
                zeroed.append(f"{path}.a.{name}")
    return zeroed


CONVNEXT_PARTS = {
    "quadratic_depthwise.conv.c": "dwconv",
    "feed_forward.norm": "norm",
    "feed_forward.expand": "pwconv1",
    "feed_forward.expand.c": "pwconv1",
    "feed_forward.project": "pwconv2",
    "feed_forward.project.c": "pwconv2",
}
"""ConvNeXt's names for its parts that a QuadraBlock has too."""

TIMM_NAMES = {
    r"^stem\.": "downsample_layers.0.",
    r"^stages\.(\d+)\.downsample\.": r"downsample_layers.\1.",
    r"^stages\.(\d+)\.blocks\.": r"stages.\1.",
    r"\.conv_dw\.": ".dwconv.",
    r"\.mlp\.fc(\d)\.": r".pwconv\1.",
    r"^head\.norm\.": "norm.",
    r"^head\.fc\.": "head.",
}
"""timm's names for a ConvNeXt's tensors, and their replacements in the official names."""


def _convnext_name(name: str) -> str:
    """ConvNeXt's name for a QuadraNet's tensor, or a name that no ConvNeXt has."""
    return published_name(name, CONVNEXT_PARTS).replace(".gamma2", ".gamma")


def _official_name(name: str) -> str:
    for pattern, official in TIMM_NAMES.items():
        name = re.sub(pattern, official, name)
    return name


class TimmWeights(NamedTuple):
    """Pre-trained weights of timm.

    Args:
        tensors: by timm's names.
        mean, std: the normalisation of their images.
        resolution: size of their images, in pixels.
    """

    tensors: dict[str, Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resolution: int


def load_timm(name: str) -> TimmWeights:
    """Pre-trained weights that timm downloads.

    Args:
        name: a model of timm, as `timm:NAME`.

    Raises:
        QuadranasError: timm cannot supply them.
        MissingExtraError: timm is not installed.
    """
    require_extra("timm", "timm")
    import timm

    name = name.removeprefix(TIMM)
    try:
        network = timm.create_model(name, pretrained=True)
        images = timm.data.resolve_model_data_config(network)
    except Exception as error:  # timm, huggingface_hub and the network each raise their own
        raise QuadranasError(f"timm cannot supply {name!r}: {error}") from error
    size = images["input_size"][-1]
    return TimmWeights(network.state_dict(), images["mean"], images["std"], size)
