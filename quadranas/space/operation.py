"""OpSpec: the description of one operation, shared by space, table, gates, network and export."""

from collections.abc import Callable
from typing import Literal, Self

from pydantic import Field, model_validator

from quadranas.errors import nearest
from quadranas.validation import Frozen

MAX_CHANNELS = 65536
MAX_RESOLUTION = 8192


class LayerChange(Frozen):
    """The replacement of one layer of a network.

    Args:
        name: the layer's path in the network, such as `blocks.stem.conv_bn.0`.
        kind: `quadratic` (replaced by second-order neurons), `adapted` (kept, with a low-rank
            quadratic term added), `removed` (replaced by the identity), `zeroed` (replaced by
            zeros), `kernel` (a depthwise convolution with the centre of its kernel) or `hidden`
            (with the first of its outputs).
        form, norm: arguments of the quadratic layer (`quadranas.layers.quadratic`).
        rank: rank of the adapted layer's quadratic term: the number of its products.
        dilation: dilation of the kernel of that term, in pixels.
        kernel_size: size of the remaining kernel, in pixels.
        width: number of remaining outputs.
        followers: paths of the layers that these outputs go through, the one that mixes them last.
    """

    name: str = Field(min_length=1)
    kind: Literal["quadratic", "adapted", "removed", "zeroed", "kernel", "hidden"]
    form: str = "hadamard"
    norm: bool = False
    rank: int = Field(default=1, ge=1, le=MAX_CHANNELS)
    dilation: int = Field(default=1, ge=1, le=63)
    kernel_size: int = Field(default=1, ge=1, le=63)
    width: int = Field(default=1, ge=1, le=MAX_CHANNELS)
    followers: tuple[str, ...] = ()

    def __str__(self) -> str:
        sizes = {"kernel": f"k{self.kernel_size}", "hidden": f"h{self.width}"}
        return sizes.get(self.kind, self.kind)


class OwnPart(Frozen):
    """A part of a user's own model, with the changes that make it one candidate.

    Args:
        layer: path of the part in the model; empty for all that no search changes.
        changes: what is changed in it, by paths in the model; empty for the part as it is.
        params, macs: number of parameters, and of multiply-accumulates at batch 1.
    """

    layer: str = ""
    changes: tuple[LayerChange, ...] = ()
    params: int = Field(ge=0, le=10**18)
    macs: int = Field(ge=0, le=10**18)

    def __str__(self) -> str:
        return " ".join((self.layer or "the rest", *map(str, self.changes)))


class OpSpec(Frozen):
    """One operation of a network; determines its parameters, MACs and latency.

    Args:
        kind: one of `OP_RULES`.
        in_channels, out_channels: for a head, `out_channels` is the number of classes.
        resolution: height and width of the input, in pixels.
        kernel_size, stride: size and stride of the kernel, in pixels; 1 for kinds without one.
        expand_ratio: channels inside the operation, relative to its input's; 1 for kinds without.
        num_quadratic: the number of quadratic layers among a feed-forward part's two linear
            layers.
        own: the part of a user's own model; None for the operations of this package.
    """

    kind: str
    in_channels: int = Field(ge=1, le=MAX_CHANNELS)
    out_channels: int = Field(ge=1, le=MAX_CHANNELS)
    resolution: int = Field(ge=1, le=MAX_RESOLUTION)
    kernel_size: int = Field(default=1, ge=1, le=63)
    stride: int = Field(default=1, ge=1, le=32)
    expand_ratio: int | float = Field(default=1, gt=0, le=64)
    num_quadratic: int = Field(default=0, ge=0, le=2)
    own: OwnPart | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.kind not in OP_RULES and self.kind not in OWN_RULES:
            known = ", ".join(sorted(OP_RULES))
            raise ValueError(
                f"unknown kind {self.kind!r}; accepted: {known}{nearest(self.kind, OP_RULES)}"
            )
        if (self.own is None) == (self.kind in OWN_RULES):
            raise ValueError(f"{self.kind}: own must be given for {' and '.join(OWN_RULES)} only")
        rule = OP_RULES.get(self.kind) or OWN_RULES[self.kind]
        fault = rule(self)
        if fault:
            raise ValueError(f"impossible {self.kind}: {fault}")
        return self

    @property
    def out_resolution(self) -> int:
        """Height and width of the output; a head pools to 1."""
        return 1 if self.is_head else -(-self.resolution // self.stride)

    @property
    def is_head(self) -> bool:
        """Whether the operation turns a feature map into class scores."""
        return self.kind in (*HEADS, "own_rest")

    @property
    def own_part(self) -> OwnPart:
        """The part of a user's own model; only for its operations."""
        assert self.own is not None
        return self.own

    @property
    def hidden_channels(self) -> int:
        """The number of channels between the two pointwise layers of an operation."""
        return round(self.in_channels * self.expand_ratio)

    def __str__(self) -> str:
        if self.own is not None:
            return str(self.own)
        parts = [f"{self.kind} {self.in_channels}->{self.out_channels}", f"r{self.resolution}"]
        parts += [f"k{self.kernel_size}"] if self.kernel_size > 1 else []
        parts += [f"s{self.stride}"] if self.stride > 1 else []
        parts += [f"e{self.expand_ratio:g}"] if self.kind in EXPANDING else []
        parts += [f"q{self.num_quadratic}"] if self.num_quadratic else []
        return " ".join(parts)


def _patches(spec: OpSpec) -> str:
    if spec.kernel_size != spec.stride:
        return f"patches need kernel_size = stride, got {spec.kernel_size} and {spec.stride}"
    if spec.resolution % spec.stride:
        return f"resolution {spec.resolution} is not divisible by stride {spec.stride}"
    return ""


def _same_shape(spec: OpSpec) -> str:
    if spec.in_channels != spec.out_channels:
        return f"in_channels = out_channels needed, got {spec.in_channels} -> {spec.out_channels}"
    return "" if spec.stride == 1 else f"stride must be 1, got {spec.stride}"


def _odd_kernel(spec: OpSpec) -> str:
    return "" if spec.kernel_size % 2 else f"kernel_size must be odd, got {spec.kernel_size}"


def _hidden(spec: OpSpec) -> str:
    return "" if spec.hidden_channels else f"expand_ratio {spec.expand_ratio} gives 0 channels"


def _unused(spec: OpSpec, *fields: str) -> str:
    """Unused fields keep their defaults, so that equal operations have equal OpSpecs."""
    for name in fields:
        value, default = getattr(spec, name), OpSpec.model_fields[name].default
        if value != default:
            return f"{name} must be {default}, got {value}"
    return ""


def _bottleneck(spec: OpSpec) -> str:
    return _odd_kernel(spec) or _unused(spec, "num_quadratic") or _hidden(spec)


WINDOW = ("kernel_size", "stride")
EXPANSION = ("expand_ratio", "num_quadratic")

OP_RULES: dict[str, Callable[[OpSpec], str]] = {
    "patch_stem": lambda spec: _patches(spec) or _unused(spec, *EXPANSION),
    "downsample": lambda spec: _patches(spec) or _unused(spec, *EXPANSION),
    "quadratic_depthwise": lambda spec: (
        _same_shape(spec) or _odd_kernel(spec) or _unused(spec, *EXPANSION)
    ),
    "feed_forward": lambda spec: _same_shape(spec) or _unused(spec, *WINDOW) or _hidden(spec),
    "quadratic_convnext": lambda spec: (
        _same_shape(spec) or _odd_kernel(spec) or _unused(spec, "num_quadratic") or _hidden(spec)
    ),
    "norm_head": lambda spec: _unused(spec, *WINDOW, *EXPANSION),
    "conv_bn": lambda spec: _odd_kernel(spec) or _unused(spec, *EXPANSION),
    "mbconv": _bottleneck,
    "quadratic_mbconv": _bottleneck,
    "linear_head": lambda spec: _unused(spec, *WINDOW, *EXPANSION),
}
"""Per kind of operation, a function that describes what is invalid in a spec ("" if valid)."""

HEADS = ("norm_head", "linear_head")

OWN_RULES: dict[str, Callable[[OpSpec], str]] = {
    "own_block": lambda spec: _unused(spec, *WINDOW, *EXPANSION),
    "own_rest": lambda spec: _unused(spec, *WINDOW, *EXPANSION),
}
"""The same for the kinds of a user's own model: a block that a search changes, and the rest."""

DEPTHWISE = ("quadratic_depthwise", "quadratic_convnext", "mbconv", "quadratic_mbconv")
"""Kinds with a depthwise convolution, whose kernel size a search chooses."""

EXPANDING = ("feed_forward", "quadratic_convnext", "mbconv", "quadratic_mbconv")
"""Kinds with hidden channels, whose number a search chooses."""
