"""OpSpec and Architecture: the frozen descriptions that every stage of the work shares.

A network is a sequence of blocks, a block a sequence of operations; stem, downsampling and head
are operations too, so parameters, MACs and latency of a network are plain sums over its OpSpecs.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from quadranas.errors import QuadranasError, nearest
from quadranas.files import read_json, validate, write_json

FORMAT_VERSION = 1
MAX_CHANNELS = 65536
MAX_RESOLUTION = 8192


class Frozen(BaseModel):
    """Plain data: immutable, hashable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OpSpec(Frozen):
    """One operation of a network, with all that decides its parameters, MACs and latency.

    Args:
        kind: one of `OP_RULES`.
        in_channels, out_channels: for a head, `out_channels` is the number of classes.
        resolution: height and width of the input, in pixels.
        kernel_size, stride, expand_ratio: where the kind has them.
        num_quadratic: how many of a feed-forward part's two linear layers are quadratic.
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
        """Channels between the two pointwise layers of a block part."""
        return round(self.in_channels * self.expand_ratio)

    def __str__(self) -> str:
        parts = [f"{self.kind} {self.in_channels}->{self.out_channels}", f"r{self.resolution}"]
        parts += [f"k{self.kernel_size}"] if self.kernel_size > 1 else []
        parts += [f"s{self.stride}"] if self.stride > 1 else []
        parts += [f"e{self.expand_ratio:g}"] if self.kind in ("feed_forward", "mbconv") else []
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
        return f"it keeps the width, got {spec.in_channels} -> {spec.out_channels}"
    return "" if spec.stride == 1 else f"stride must be 1, got {spec.stride}"


def _odd_kernel(spec: OpSpec) -> str:
    return "" if spec.kernel_size % 2 else f"kernel_size must be odd, got {spec.kernel_size}"


def _hidden(spec: OpSpec) -> str:
    return "" if spec.hidden_channels else f"expand_ratio {spec.expand_ratio} leaves no channels"


def _lacks(spec: OpSpec, *fields: str) -> str:
    """Fields that a kind does not have keep their defaults: one operation, one OpSpec."""
    for name in fields:
        value, default = getattr(spec, name), OpSpec.model_fields[name].default
        if value != default:
            return f"{name} must be {default}, got {value}"
    return ""


WINDOW = ("kernel_size", "stride")
EXPANSION = ("expand_ratio", "num_quadratic")

OP_RULES: dict[str, Callable[[OpSpec], str]] = {
    "patch_stem": lambda spec: _patches(spec) or _lacks(spec, *EXPANSION),
    "downsample": lambda spec: _patches(spec) or _lacks(spec, *EXPANSION),
    "quadratic_depthwise": lambda spec: (
        _same_shape(spec) or _odd_kernel(spec) or _lacks(spec, *EXPANSION)
    ),
    "feed_forward": lambda spec: _same_shape(spec) or _lacks(spec, *WINDOW) or _hidden(spec),
    "norm_head": lambda spec: _lacks(spec, *WINDOW, *EXPANSION),
    "conv_bn": lambda spec: _odd_kernel(spec) or _lacks(spec, *EXPANSION),
    "mbconv": lambda spec: _odd_kernel(spec) or _lacks(spec, "num_quadratic") or _hidden(spec),
    "linear_head": lambda spec: _lacks(spec, *WINDOW, *EXPANSION),
}
"""The kinds of operation and what makes one impossible (empty text: nothing does)."""

HEADS = ("norm_head", "linear_head")


class Block(Frozen):
    """A named run of operations that is kept or skipped as a whole."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    ops: tuple[OpSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_of_each_kind(self) -> Self:
        kinds = [op.kind for op in self.ops]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"block {self.name!r} holds the same kind of operation twice")
        return self


class LayerChange(Frozen):
    """A layer of a network that another one has replaced.

    Args:
        name: the layer's path in the network, such as `blocks.stem.conv_bn.0`.
        kind: `quadratic` (second-order neurons in its place), `adapted` (itself, and a low-rank
            quadratic term) or `removed` (nothing: its input is its output).
        form, norm: of a quadratic layer (`quadranas.layers.quadratic`).
        rank, dilation: of an adapted layer's quadratic term.
    """

    name: str = Field(min_length=1)
    kind: Literal["quadratic", "adapted", "removed"]
    form: str = "hadamard"
    norm: bool = False
    rank: int = Field(default=1, ge=1, le=MAX_CHANNELS)
    dilation: int = Field(default=1, ge=1, le=63)


class Architecture(Frozen):
    """A network written down: rebuilds it from itself alone.

    Args:
        space: the search space it was drawn from; empty for a reference model.
        layer_scale: initial value of the gammas on the residual branches.
        changes: layers replaced in the network that the blocks describe.
        provenance: how it came about, as plain values (device, budget, predicted latency ...).
    """

    format_version: int = Field(default=FORMAT_VERSION, ge=1, le=FORMAT_VERSION)
    name: str
    space: str = ""
    resolution: int = Field(ge=1, le=MAX_RESOLUTION)
    num_classes: int = Field(ge=1, le=MAX_CHANNELS)
    layer_scale: FiniteFloat = 1.0
    blocks: tuple[Block, ...] = Field(min_length=1)
    changes: tuple[LayerChange, ...] = ()
    provenance: dict[str, str | int | FiniteFloat | bool | None] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_chain(self) -> Self:
        names = [block.name for block in self.blocks]
        if len(set(names)) < len(names):
            raise ValueError("two blocks share a name")
        channels, resolution = 3, self.resolution
        ops = tuple(self.ops())
        for index, op in enumerate(ops):
            if (op.in_channels, op.resolution) != (channels, resolution):
                raise ValueError(
                    f"operation {index} ({op}) takes {op.in_channels} channels at "
                    f"{op.resolution} pixels, but receives {channels} at {resolution}"
                )
            if op.is_head != (index == len(ops) - 1):
                raise ValueError("exactly one head is needed, as the last operation")
            channels, resolution = op.out_channels, op.out_resolution
        if channels != self.num_classes:
            raise ValueError(f"the head has {channels} outputs for {self.num_classes} classes")
        return self

    def ops(self) -> Iterator[OpSpec]:
        """Every operation in the order of computation."""
        for block in self.blocks:
            yield from block.ops

    def adapted(self, *, resolution: int | None = None, num_classes: int | None = None) -> Self:
        """The same network for another input resolution or number of classes.

        Raises:
            QuadranasError: the new resolution is not divisible by the network's total stride, or
                there cannot be so many classes.
        """
        classes = self.num_classes if num_classes is None else num_classes
        size = self.resolution if resolution is None else resolution
        check_num_classes(classes, self.name)
        if resolution is not None:
            check_resolution(size, tuple(self.ops()), self.name)
        blocks = []
        pixels = size
        for block in self.blocks:
            ops = []
            for op in block.ops:
                out = classes if op.is_head else op.out_channels
                ops.append(op.model_copy(update={"resolution": pixels, "out_channels": out}))
                pixels = ops[-1].out_resolution
            blocks.append({"name": block.name, "ops": [op.model_dump() for op in ops]})
        content = self.model_dump() | {
            "resolution": size,
            "num_classes": classes,
            "blocks": blocks,
        }
        return type(self).model_validate(content)

    def save(self, path: Path) -> None:
        """Write the architecture as JSON, without the fields left at their defaults."""
        content = self.model_dump(mode="json")
        content["blocks"] = [
            {
                "name": block.name,
                "ops": [op.model_dump(mode="json", exclude_defaults=True) for op in block.ops],
            }
            for block in self.blocks
        ]
        content["changes"] = [
            change.model_dump(mode="json", exclude_defaults=True) for change in self.changes
        ]
        if not self.changes:
            del content["changes"]
        write_json(path, content)


def check_resolution(resolution: int, ops: tuple[OpSpec, ...], name: str) -> None:
    """Refuse an input resolution that the strides of a network do not divide.

    Raises:
        QuadranasError: naming the nearest resolutions that fit.
    """
    total = 1
    for op in ops:
        total *= op.stride
    if resolution < total or resolution % total or resolution > MAX_RESOLUTION:
        below = max(min(resolution, MAX_RESOLUTION) // total, 1) * total
        nearest_fits = [size for size in (below, below + total) if size <= MAX_RESOLUTION]
        raise QuadranasError(
            f"resolution {resolution} does not fit {name}: it must be a multiple of {total}, "
            f"at most {MAX_RESOLUTION}",
            f"Use {' or '.join(map(str, nearest_fits))}.",
        )


def check_num_classes(num_classes: int, name: str) -> None:
    """Refuse a number of classes that no head can have.

    Raises:
        QuadranasError: giving the accepted range.
    """
    if not 1 <= num_classes <= MAX_CHANNELS:
        raise QuadranasError(
            f"{num_classes} classes do not fit {name}: there must be 1 to {MAX_CHANNELS}"
        )


def load_architecture(path: Path) -> Architecture:
    """Read an architecture file.

    Raises:
        QuadranasError: unreadable, from a newer version, or with an impossible choice.
    """
    content: dict[str, Any] = read_json(path, "architecture")
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise QuadranasError(
            f"{path}: format_version {version} is newer than this quadranas reads "
            f"(up to {FORMAT_VERSION})",
            "Upgrade with: pip install --upgrade quadranas",
        )
    if "blocks" not in content:
        raise QuadranasError(f"{path}: not an architecture file: it has no key 'blocks'")
    return validate(Architecture, content, path)
