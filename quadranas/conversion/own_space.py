"""A search space made from a user's own model: which of its parts may change, and how."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from quadranas.conversion.selection import obstacle
from quadranas.conversion.traced import Call, HiddenPair, Traced, common_module, traced
from quadranas.errors import QuadranasError, nearest
from quadranas.network.own_model import (
    changed_part,
    copy_of,
    first_line,
    part_inputs,
    use_model,
)
from quadranas.space.operation import MAX_RESOLUTION, LayerChange
from quadranas.space.own_space_file import (
    MAX_BLOCK_CANDIDATES,
    REST,
    OwnBlock,
    OwnCandidate,
    OwnSpaceFile,
)
from quadranas.validation import validate

CHOICES = ("skip", "kernel", "hidden", "quadratic", "adapted")
"""What a search may do to a part of a model."""

DEFAULT_CHOICES = ("skip", "kernel", "hidden")
WIDTHS = (0.5, 0.75, 1.0)
MULTIPLE, LEAST = 8, 32
"""Hidden widths are multiples of the first, if the whole width is one and at least the second."""

Where = str | Sequence[str] | Mapping[str, Sequence[str]]


@dataclass
class _Part:
    """A part of the model with its choices; each is a list of alternative changes."""

    layer: str
    optional: bool = False
    added: bool = False
    pairs: list[HiddenPair] = field(default_factory=list)
    kernels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    terms: dict[str, list[str]] = field(default_factory=dict)


def own_space(
    model: nn.Module,
    example: Tensor,
    where: Where,
    *,
    name: str,
    source: str,
    widths: Sequence[float] = WIDTHS,
) -> OwnSpaceFile:
    """The space of a model, which is given to this process.

    Args:
        example: one image, (1, 3, size, size).
        where: patterns of paths, perhaps with their choices; see `make_space`.
        name: name of the space.
        source: where the model comes from, in words.
        widths: hidden widths, as shares of the model's.

    Raises:
        QuadranasError: the model fails or does not export, or what `where` names cannot change.
    """
    size = _check_example(example)
    shares, wanted = _check_widths(widths), _wanted(where)
    digest = use_model(model)
    copy, image = copy_of(digest), example.detach().float().cpu()
    graph = traced(copy, image)
    parts = _parts(graph, wanted)
    inputs = part_inputs(copy, tuple(part.layer for part in parts), size)
    names = _names([part.layer for part in parts])
    blocks = [
        _block(part, block, graph, inputs[part.layer], shares)
        for part, block in zip(parts, names, strict=True)
    ]
    originals = [next(c for c in block.candidates if not c.changes) for block in blocks]
    params, macs = _counts(copy, image)
    return validate(
        OwnSpaceFile,
        {
            "name": name,
            "model": source,
            "digest": digest,
            "resolution": size,
            "num_classes": graph.output_shape[1],
            "rest_params": params - sum(one.params for one in originals),
            "rest_macs": macs - sum(one.macs for one in originals),
            "blocks": [block.model_dump() for block in blocks],
        },
        f"the space of {source}",
    )


def _check_example(example: Tensor) -> int:
    """The size of the example image."""
    shape = tuple(example.shape) if isinstance(example, Tensor) else ()
    if len(shape) != 4 or shape[:2] != (1, 3) or shape[2] != shape[3] or shape[2] < 1:
        raise QuadranasError(
            f"the example has {f'shape {shape}' if shape else f'type {type(example).__name__}'}; "
            "expected one square image, (1, 3, size, size)",
            "Give one such as torch.zeros(1, 3, 224, 224).",
        )
    if shape[2] > MAX_RESOLUTION:
        raise QuadranasError(f"the example has {shape[2]} pixels, more than {MAX_RESOLUTION}")
    return int(shape[2])


def _check_widths(widths: Sequence[float]) -> tuple[float, ...]:
    shares = tuple(sorted({*widths, 1.0}))
    if not 0 < shares[0] < 1 or shares[-1] > 1:
        raise QuadranasError(
            f"widths must be shares from 0 to 1, one of them below 1, got {list(widths)}",
            f"Name some such as {', '.join(map(str, WIDTHS))}.",
        )
    return shares


def _wanted(where: Where) -> dict[str, tuple[str, ...]]:
    """The choices of every pattern."""
    if isinstance(where, str):
        where = [where]
    patterns = where if isinstance(where, Mapping) else dict.fromkeys(where, DEFAULT_CHOICES)
    if not patterns:
        raise QuadranasError(
            "where names nothing, so there is nothing to search",
            "Name the parts that may change, such as 'layer2.*', or '*' for all.",
        )
    for pattern, choices in patterns.items():
        for choice in [choices] if isinstance(choices, str) else choices:
            if choice not in CHOICES:
                raise QuadranasError(
                    f"where {pattern!r}: unknown choice {choice!r}; accepted: "
                    f"{', '.join(CHOICES)}{nearest(str(choice), CHOICES)}",
                    f"Omit the choices for the usual ones, {', '.join(DEFAULT_CHOICES)}.",
                )
    return {
        pattern: (choices,) if isinstance(choices, str) else tuple(choices)
        for pattern, choices in patterns.items()
    }


def _meets(pattern: str, path: str) -> bool:
    """Whether a pattern matches a path, or one of the modules around it."""
    parts = path.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def _parts(graph: Traced, wanted: Mapping[str, tuple[str, ...]]) -> list[_Part]:
    """The parts to search, in the order of the model, none inside another.

    Raises:
        QuadranasError: a pattern that matches nothing, or nothing that can change.
    """
    order = [name for name, _ in graph.model.named_modules() if name]
    found: dict[str, _Part] = {}
    for pattern, choices in wanted.items():
        met = [name for name in order if _meets(pattern, name)]
        if not met:
            raise QuadranasError(
                f"where {pattern!r} matches no layer of the model{nearest(pattern, order)}",
                f"Its layers: {', '.join(order[:8])}{' ...' if len(order) > 8 else ''}",
            )
        reasons: dict[str, str] = {}
        kinds = {choice: list(FINDERS[choice](graph, met, reasons)) for choice in choices}
        if not any(kinds.values()):
            some = "; ".join(f"{name}: {why}" for name, why in list(reasons.items())[:4])
            raise QuadranasError(
                f"where {pattern!r} names nothing that can change by {', '.join(choices)}"
                + (f" ({some})" if some else ""),
                "Name residual blocks for skip, depthwise convolutions for kernel, a pair of "
                "layers for hidden, and linear layers or convolutions for quadratic or adapted.",
            )
        for part in (part for parts in kinds.values() for part in parts):
            _add(found, part)
    return sorted(found.values(), key=lambda part: order.index(part.layer))


def _add(found: dict[str, _Part], part: _Part) -> None:
    """Add a part; parts inside of one another become one."""
    inner = [name for name in found if name == part.layer or name.startswith(f"{part.layer}.")]
    outer = [name for name in found if part.layer.startswith(f"{name}.")]
    merged = found[outer[0]] if outer else part
    for name in inner:
        other = found.pop(name)
        merged.optional |= other.optional and name == merged.layer
        merged.added |= other.added and name == merged.layer
        _join(merged, other)
    if outer:
        _join(merged, part)
    found[merged.layer] = merged


def _join(part: _Part, other: _Part) -> None:
    part.pairs += [pair for pair in other.pairs if pair not in part.pairs]
    part.kernels |= other.kernels
    for name, kinds in other.terms.items():
        own = part.terms.setdefault(name, [])
        own += [kind for kind in kinds if kind not in own]


Finder = Callable[[Traced, list[str], dict[str, str]], Iterator[_Part]]


def _skips(graph: Traced, names: list[str], reasons: dict[str, str]) -> Iterator[_Part]:
    added = graph.added_blocks()
    blocks = graph.residual_blocks(added)
    for name in names:
        if name in blocks or name in added:
            yield _Part(name, optional=True, added=name in added)
        else:
            reasons.setdefault(name, "it is no residual block")


def _pairs(graph: Traced, names: list[str], reasons: dict[str, str]) -> Iterator[_Part]:
    for name in names:
        if not graph.model.get_submodule(name)._parameters:
            continue
        pair = graph.hidden_pair(name)
        if isinstance(pair, str):
            reasons[name] = pair
            continue
        why = next(filter(None, (_obstacle(graph, layer) for layer in pair.layers)), "")
        around = _around(graph, common_module(pair.layers))
        if why or not around:
            reasons[name] = why or "its hidden units are in no module of their own"
            continue
        yield _Part(around, pairs=[pair])


def _around(graph: Traced, path: str) -> str:
    """The innermost module around a path that is called once with one tensor; empty for none."""
    while path and not graph.calls.get(path, Call(is_simple=False)).is_simple:
        path = path.rpartition(".")[0]
    return path


def _kernels(graph: Traced, names: list[str], reasons: dict[str, str]) -> Iterator[_Part]:
    for name in names:
        sizes = graph.kernel_sizes(name)
        if isinstance(sizes, str):
            reasons.setdefault(name, sizes)
        elif why := _obstacle(graph, name):
            reasons[name] = why
        else:
            yield _Part(name, kernels={name: sizes})


def _terms(kind: str) -> Finder:
    def find(graph: Traced, names: list[str], reasons: dict[str, str]) -> Iterator[_Part]:
        for name in names:
            layer = graph.model.get_submodule(name)
            if not layer._parameters:
                continue
            if why := obstacle(graph.model, name, layer) or _called_once(graph, name):
                reasons[name] = why
            else:
                yield _Part(name, terms={name: [kind]})

    return find


def _obstacle(graph: Traced, name: str) -> str:
    """Why a layer cannot be replaced by a smaller one."""
    layer = graph.model.get_submodule(name)
    is_norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
    return _called_once(graph, name) or ("" if is_norm else obstacle(graph.model, name, layer))


def _called_once(graph: Traced, name: str) -> str:
    is_simple = name in graph.calls and graph.calls[name].is_simple
    return "" if is_simple else "it is not called exactly once with one tensor"


FINDERS: dict[str, Finder] = {
    "skip": _skips,
    "kernel": _kernels,
    "hidden": _pairs,
    "quadratic": _terms("quadratic"),
    "adapted": _terms("adapted"),
}
"""Per choice, a function that finds the parts of a model that offer it."""


def _names(layers: Sequence[str]) -> list[str]:
    """Names of blocks, each after its path in the model."""
    names: list[str] = []
    for layer in layers:
        name = re.sub(r"\W", "_", layer, flags=re.ASCII)
        name = f"block_{name}" if not name[:1].isalpha() or name == REST else name
        names.append(f"{name}_{len(names)}" if name in names else name)
    return names


def _block(
    part: _Part, name: str, graph: Traced, image: Tensor, shares: tuple[float, ...]
) -> OwnBlock:
    """A part with all its candidates, each of which has been run.

    Raises:
        QuadranasError: too many candidates, or one fails.
    """
    changes = list(_alternatives(part, shares))
    if len(changes) > MAX_BLOCK_CANDIDATES:
        raise QuadranasError(
            f"{part.layer} has {len(changes)} candidates, more than {MAX_BLOCK_CANDIDATES}",
            "Let fewer of its layers change with where, or name fewer widths.",
        )
    model = graph.model.get_submodule(part.layer)
    candidates = []
    for change in changes:
        try:
            form = changed_part(model, part.layer, change)
            params, macs = _counts(form, image)
        except Exception as error:  # any error of the user's code
            made = ", ".join(map(str, change))
            raise QuadranasError(
                f"{part.layer} fails with {made}: {first_line(error)}",
                "Its code depends on the sizes of its layers; leave it out of where.",
            ) from error
        candidates.append(OwnCandidate(changes=change, params=params, macs=macs))
    call = graph.calls[part.layer]
    return OwnBlock(
        name=name,
        layer=part.layer,
        optional=part.optional,
        added=part.added,
        in_channels=call.in_shape[1 if len(call.in_shape) == 4 else -1],
        out_channels=call.out_shape[1 if len(call.out_shape) == 4 else -1],
        resolution=call.in_shape[2] if len(call.in_shape) == 4 else 1,
        candidates=tuple(candidates),
    )


def _alternatives(part: _Part, shares: tuple[float, ...]) -> Iterator[tuple[LayerChange, ...]]:
    """The combinations of the choices of a part, the smallest first."""
    options: list[list[LayerChange | None]] = []
    for pair in part.pairs:
        widths = sorted({_width(pair.width, share) for share in shares})
        followers = (*pair.between, pair.last)
        options.append(
            [
                LayerChange(name=pair.first, kind="hidden", width=width, followers=followers)
                for width in widths
                if width < pair.width
            ]
            + [None]
        )
    for name, sizes in part.kernels.items():
        smaller = [LayerChange(name=name, kind="kernel", kernel_size=s) for s in sizes[:-1]]
        options.append([*smaller, None])
    for name, kinds in part.terms.items():
        if len(kinds) > 1:
            raise QuadranasError(
                f"where lets {name} become quadratic as well as adapted",
                "Choose one of the two for each layer.",
            )
        options.append([None, LayerChange(name=name, kind=kinds[0])])
    for chosen in product(*options):
        yield tuple(change for change in chosen if change is not None)


def _width(width: int, share: float) -> int:
    step = MULTIPLE if width % MULTIPLE == 0 and width >= LEAST else 1
    return max(step, round(width * share / step) * step)


@torch.no_grad()
def _counts(model: nn.Module, example: Tensor) -> tuple[int, int]:
    """The number of parameters of a module, and of its multiply-accumulates for an input."""
    with FlopCounterMode(display=False) as counter:
        model(example)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2
