"""OpSpec: the description of one operation, shared by space, table, gates, network and export."""

from collections.abc import Callable
from typing import Self

from pydantic import Field, model_validator

from quadranas.errors import nearest
from quadranas.validation import Frozen

MAX_CHANNELS = 65536
MAX_RESOLUTION = 8192


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
    """

    kind: str
    in_channels: int = Field(ge=1, le=MAX_CHANNELS)
    out_channels: int = Field(ge=1, le=MAX_CHANNELS)
    resolution: int = Field(ge=1, le=MAX_RESOLUTION)
    kernel_size: int = Field(default=1, ge=1, le=63)
    stride: int = Field(default=1, ge=1, le=32)
    expand_ratio: int | float = Field(default=1, gt=0, le=64)
    num_quadratic: int = Field(default=0, ge=0, le=2)

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.kind not in OP_RULES:
            known = ", ".join(sorted(OP_RULES))
            raise ValueError(
                f"unknown kind {self.kind!r}; accepted: {known}{nearest(self.kind, OP_RULES)}"
            )
        fault = OP_RULES[self.kind](self)
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
        return self.kind in HEADS

    @property
    def hidden_channels(self) -> int:
        """The number of channels between the two pointwise layers of an operation."""
        return round(self.in_channels * self.expand_ratio)

    def __str__(self) -> str:
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
    "mbconv": lambda spec: _odd_kernel(spec) or _unused(spec, "num_quadratic") or _hidden(spec),
    "linear_head": lambda spec: _unused(spec, *WINDOW, *EXPANSION),
}
"""Per kind of operation, a function that describes what is invalid in a spec ("" if valid)."""

HEADS = ("norm_head", "linear_head")

DEPTHWISE = ("quadratic_depthwise", "quadratic_convnext", "mbconv")
"""Kinds with a depthwise convolution, whose kernel size a search chooses."""

EXPANDING = ("feed_forward", "quadratic_convnext", "mbconv")
"""Kinds with hidden channels, whose number a search chooses."""
