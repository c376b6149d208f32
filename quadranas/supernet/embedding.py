"""A supernet whose candidates get their weights from one pre-trained network.

Sources: once-for-all, Cai et al., ICLR 2020 (arXiv:1908.09791), Sec. 3.2: smaller kernels and
expansions as parts of a trained block. QuadraNet V2, Xu et al., 2024 (arXiv:2405.03192): added
quadratic terms are zero at the start. The rules for sizes beyond those of the network are our own.

The largest sub-network computes what the pre-trained network does: kernels grow by a margin of
zeros, hidden units are added with outgoing weights of zero, and blocks beyond the depth of the
network start as the identity, with a layer scale of zero.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from quadranas.errors import QuadranasError
from quadranas.layers.hidden_units import importance
from quadranas.layers.mbconv import depthwise_index
from quadranas.layers.quadranet import ResidualBranch
from quadranas.runs.pretrained_record import EmbeddedPart
from quadranas.space.architecture import Block
from quadranas.space.matching import StageMatch
from quadranas.space.operation import DEPTHWISE, OpSpec
from quadranas.space.search_space import Choices, SearchSpace, SpaceBlock
from quadranas.supernet.nested import largest_of
from quadranas.supernet.supernet import MixedOp, Supernet

MAX_FACTOR = 4.0
"""Largest factor by which the centre of a kernel is scaled. If the centre would need more, as its
sum is nearly zero, what is missing is spread evenly over it instead."""

HEAD = "head:"
"""Beginning of a deviation that concerns the classifier alone."""

Tensors = Mapping[str, Tensor]


def _feed_forward(spec: OpSpec) -> dict[str, int]:
    return {"expand.weight": 0, "expand.bias": 0, "project.weight": 1}


def _mbconv(spec: OpSpec) -> dict[str, int]:
    """The layers are convolution and BatchNorm twice, depthwise last, then the projection.

    Without an expansion the depthwise convolution is the first layer, otherwise the fourth.
    """
    depthwise = depthwise_index(spec)
    norm = ("weight", "bias", "running_mean", "running_var")
    axes = {f"layers.{depthwise + 3}.weight": 1}
    for layer in range(0, depthwise + 1, 3):
        axes |= {f"layers.{layer}.weight": 0, **{f"layers.{layer + 1}.{n}": 0 for n in norm}}
    if spec.kind == "quadratic_mbconv":
        del axes[f"layers.{depthwise}.weight"]
        axes |= {f"layers.{depthwise}.{branch}.weight": 0 for branch in "abc"}
    return axes


HIDDEN: dict[str, Callable[[OpSpec], dict[str, int]]] = {
    "feed_forward": _feed_forward,
    "quadratic_convnext": _feed_forward,
    "mbconv": _mbconv,
    "quadratic_mbconv": _mbconv,
}
"""Per kind with hidden units, the axis of each tensor along which they lie; 1 is that of the
weights that go out of them."""


@dataclass(frozen=True)
class Embedding:
    """What a supernet took from a pre-trained network.

    Args:
        parts: what of every stage was used, sliced or dropped.
        deviations: why the largest sub-network does not compute what the network does; empty if
            it does.
        origins: per block of the space, the block of the network that its weights come from;
            None for blocks that are new.
        has_head: whether the classifier is that of the network.
    """

    parts: tuple[EmbeddedPart, ...]
    deviations: tuple[str, ...]
    origins: Mapping[str, str | None]
    has_head: bool


class _Source(NamedTuple):
    """An operation of the pre-trained network with its tensors."""

    spec: OpSpec
    tensors: Tensors


def embed(
    supernet: Supernet, matches: Sequence[StageMatch], tensors: Tensors, *, uses_head: bool
) -> Embedding:
    """Fill a supernet, in place, with weights derived from those of one network.

    Args:
        matches: the stages of the space with their counterparts.
        tensors: the network's, by the names of this package.
        uses_head: whether its classifier fits the classes; otherwise that stays random.

    Raises:
        QuadranasError: a candidate cannot get weights from the network; names it.
    """
    parts, deviations = [], []
    origins: dict[str, str | None] = {}
    for match in matches:
        for block, counterpart in match.pairs:
            origins[block.name] = None if counterpart is None else counterpart.name
            for index, mixed in enumerate(supernet.slots(block.name)):
                source = None if counterpart is None else _source(counterpart, index, tensors)
                _fill(mixed, source, block.name, uses_head=uses_head)
        part, lacking = _summary(match, uses_head=uses_head)
        parts.append(part)
        deviations += lacking
    return Embedding(tuple(parts), tuple(deviations), origins, uses_head)


def largest_choices(space: SearchSpace) -> Choices:
    """The choice of every block with the largest kernels and expansions.

    Of a user's own model these are the parts as they are.
    """
    if space.model is not None:
        return space.original_choices()
    return {
        block.name: tuple(
            slot.candidates.index(largest_of(slot.candidates)) for slot in block.slots
        )
        for block in space.blocks
    }


def _source(block: Block, index: int, tensors: Tensors) -> _Source:
    spec = block.ops[index]
    prefix = f"blocks.{block.name}.{spec.kind}."
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return _Source(spec, own)


@torch.no_grad()
def _fill(mixed: MixedOp, source: _Source | None, block: str, *, uses_head: bool) -> None:
    """Set the weights of the candidates of a slot."""
    for spec, module in mixed.owners:
        if source is None:
            _become_identity(module, f"{block}: {spec}")
            continue
        own = module.state_dict()
        derived = _derived(source, spec, own, f"{block}: {spec}", sort=mixed.nests_expansions)
        if spec.is_head and not uses_head:
            derived = {n: t for n, t in derived.items() if not n.startswith("linear.")}
        for name, tensor in derived.items():
            own[name].copy_(tensor)


def _become_identity(module: nn.Module, name: str) -> None:
    """Let a block return its input: its branch is multiplied by zero."""
    if isinstance(module, ResidualBranch):
        nn.init.zeros_(module.gamma)
        return
    norms = [inside for inside in module.modules() if isinstance(inside, BatchNorm)]
    if not getattr(module, "residual", False) or not norms:
        raise QuadranasError(
            f"{name} has no counterpart in the pre-trained network, and cannot start as the "
            "identity, since it has no residual",
            "Use a space whose stages have no more blocks without a residual than the network.",
        )
    for tensor in (norms[-1].weight, norms[-1].bias):
        nn.init.zeros_(tensor)


def _derived(
    source: _Source, spec: OpSpec, own: Tensors, name: str, *, sort: bool
) -> dict[str, Tensor]:
    """The tensors of one candidate.

    Args:
        own: its tensors so far, from which added hidden units get their incoming weights.
        sort: whether smaller candidates are the first hidden units of this one: the units are
            then sorted by importance.
    """
    axes, axes_there = _axes_of(spec), _axes_of(source.spec)
    units = _units(source, spec, sort=sort)
    derived = {}
    for key, tensor in source.tensors.items():
        if key not in own or axes.get(key) != axes_there.get(key):
            raise QuadranasError(
                f"candidate {name} cannot get weights from {source.spec}: only one of them has "
                "an expansion layer",
                "Remove the expansion ratio 1, or all others, from the stage.",
            )
        if tensor.ndim == 4 and tensor.shape[2:] != own[key].shape[2:]:
            tensor = resized_kernel(tensor, own[key].shape[-1])
        if key in axes:
            tensor = _with_units(tensor, own[key], units, axes[key])
        derived[key] = tensor
    return derived


def _axes_of(spec: OpSpec) -> dict[str, int]:
    return HIDDEN[spec.kind](spec) if spec.kind in HIDDEN else {}


def _units(source: _Source, spec: OpSpec, *, sort: bool) -> Tensor:
    """The hidden units of the network that a candidate takes, in their order there.

    Args:
        sort: the most important first.
    """
    number, kept = source.spec.hidden_channels, spec.hidden_channels
    if spec.kind not in HIDDEN or (kept >= number and not sort):
        return torch.arange(number)
    found = importance(source.tensors, _axes_of(source.spec))
    order = found.argsort(descending=True, stable=True)
    return order[:kept] if sort else order[:kept].sort().values


def _with_units(tensor: Tensor, own: Tensor, units: Tensor, axis: int) -> Tensor:
    """A tensor with some of its hidden units, and as many more as a candidate has."""
    chosen = tensor.index_select(axis, units)
    more = own.shape[axis] - len(units)
    if more <= 0:
        return chosen
    added = own.narrow(axis, len(units), more)
    return torch.cat([chosen, torch.zeros_like(added) if axis == 1 else added], axis)


def resized_kernel(weight: Tensor, size: int) -> Tensor:
    """A depthwise kernel of another size, (C, 1, K, K) to (C, 1, size, size).

    A larger one has a margin of zeros. A smaller one is the centre, scaled so that the response to
    a constant image stays the same (away from the edges).
    """
    margin = (size - weight.shape[-1]) // 2
    if margin >= 0:
        return nn.functional.pad(weight, [margin] * 4)
    centre = weight[..., -margin:margin, -margin:margin].double()
    whole, part = (w.double().sum((2, 3), keepdim=True) for w in (weight, centre))
    factor = whole / part
    fits = factor.isfinite() & (factor > 1 / MAX_FACTOR) & (factor < MAX_FACTOR)
    spread = centre + (whole - part) / size**2
    return torch.where(fits, centre * factor, spread).to(weight.dtype)


def _summary(match: StageMatch, *, uses_head: bool) -> tuple[EmbeddedPart, list[str]]:
    """What of a stage was used, and why its largest blocks differ from the network's."""
    if match.pairs[0][0].slots[0].candidates[0].is_head:
        return _head_summary(match, uses_head=uses_head)
    filled = [(block, other) for block, other in match.pairs if other is not None]
    sliced, deviations = _slices(match.name, filled)
    entries = sum(block.name.endswith("_entry") for block, _ in filled)
    used = ["entry"] * entries
    used += [_blocks(len(filled) - entries)] if len(filled) > entries else []
    new, dropped = len(match.pairs) - len(filled), ""
    if match.extra:
        dropped = _blocks(len(match.extra))
        deviations.append(f"{match.name}: {dropped} dropped")
    part = EmbeddedPart(
        part=match.name,
        used=" and ".join(used),
        sliced=sliced,
        dropped=dropped,
        new=f"{_blocks(new)}, at first the identity" if new else "",
    )
    return part, deviations


def _slices(stage: str, filled: Sequence[tuple[SpaceBlock, Block]]) -> tuple[str, list[str]]:
    """The sizes for which parts of blocks are taken, and those below all sizes of the network."""
    sliced, deviations = [], []
    for field, name, kinds in SIZES:
        smaller: dict[str, None] = {}
        cuts: dict[str, None] = {}
        for block, other in filled:
            for slot, op in zip(block.slots, other.ops, strict=True):
                have = getattr(op, field)
                sizes = [getattr(spec, field) for spec in slot.candidates]
                if op.kind in kinds:
                    smaller |= {f"{size:g}": None for size in sizes if size < have}
                    cuts |= {f"{have:g} to {max(sizes):g}": None} if max(sizes) < have else {}
        sliced += [f"{name} {', '.join(smaller)}"] if smaller else []
        deviations += [f"{stage}: {name} reduced from {cut}" for cut in cuts]
    return "; ".join(sliced), deviations


def _blocks(number: int) -> str:
    return f"{number} block{'s' * (number != 1)}"


SIZES = (("kernel_size", "kernel", DEPTHWISE), ("expand_ratio", "expansion", tuple(HIDDEN)))
"""Fields of operations that a search chooses, with their names and kinds."""


def _head_summary(match: StageMatch, *, uses_head: bool) -> tuple[EmbeddedPart, list[str]]:
    (own,), head = match.pairs[0][0].slots[0].candidates, match.pairs[0][1]
    assert head is not None
    if uses_head:
        return EmbeddedPart(part="head", used=f"classifier of {own.out_channels} classes"), []
    dropped = f"classifier of {head.ops[0].out_channels} classes"
    new = f"classifier of {own.out_channels} classes"
    norm = "norm" if own.kind == "norm_head" else ""
    part = EmbeddedPart(part="head", used=norm, dropped=dropped, new=new)
    return part, [f"{HEAD} a new classifier, for other classes"]
