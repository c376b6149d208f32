"""Architecture: the frozen description of a network that search, training and export share.

A network is a sequence of blocks, a block a sequence of operations; stem, downsampling and head
are operations too, so parameters, MACs and latency of a network are plain sums over its OpSpecs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, FiniteFloat, model_validator

from quadranas.errors import QuadranasError
from quadranas.files import read_json, write_json
from quadranas.space.operation import MAX_CHANNELS, MAX_RESOLUTION, OpSpec
from quadranas.space.operation import LayerChange as LayerChange
from quadranas.validation import Frozen, refuse_newer, validate

FORMAT_VERSION = 1

ARCHITECTURE_FILE = "architecture.json"
"""The name of the architecture file in a run folder."""


class Block(Frozen):
    """A named sequence of operations that is kept or skipped as a whole.

    Args:
        name: name of the block; unique in the architecture.
        ops: the operations in order; each kind at most once.
    """

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    ops: tuple[OpSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_of_each_kind(self) -> Self:
        kinds = [op.kind for op in self.ops]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"block {self.name!r} contains the same kind of operation twice")
        return self


class OwnModel(Frozen):
    """Which of a user's own models a network is made from; the code itself is in no file.

    Args:
        source: where the model comes from, in words; nothing is ever loaded from it.
        digest: identifies its layers and the shapes of its tensors.
        parts: per block that a search may change, its path in the model.
        added: blocks whose input is added to their output by the code around them: they are
            skipped by returning zeros.
    """

    source: str = Field(max_length=1000)
    digest: str = Field(pattern=r"^[0-9a-f]{16}$")
    parts: dict[str, Annotated[str, Field(min_length=1)]]
    added: tuple[str, ...] = ()


class Architecture(Frozen):
    """A complete description of a network, sufficient to rebuild it.

    Args:
        format_version: version of the file format.
        name: name of the network.
        space: name of the search space that contains it; empty for a reference model.
        resolution: height and width of the input, in pixels.
        num_classes: number of classes.
        layer_scale: initial value of the gammas on the residual branches.
        blocks: the blocks in order; the last operation is the only head.
        changes: layers to replace in the network that the blocks describe.
        model: the user's own model that the network is made from; None for networks of operations
            of this package. A block of the model that the architecture lacks is skipped.
        provenance: origin of the architecture, as plain values (device, budget, predicted latency
            ...).
    """

    format_version: int = Field(default=FORMAT_VERSION, ge=1, le=FORMAT_VERSION)
    name: str
    space: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")
    resolution: int = Field(ge=1, le=MAX_RESOLUTION)
    num_classes: int = Field(ge=1, le=MAX_CHANNELS)
    layer_scale: float = Field(default=1.0, ge=-1e30, le=1e30)
    blocks: tuple[Block, ...] = Field(min_length=1)
    changes: tuple[LayerChange, ...] = ()
    model: OwnModel | None = None
    provenance: dict[str, str | int | FiniteFloat | bool | None] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_chain(self) -> Self:
        names = [block.name for block in self.blocks]
        if len(set(names)) < len(names):
            raise ValueError("two blocks share a name")
        ops = tuple(self.ops())
        if self.model is not None or any(op.own for op in ops):
            self._check_own(ops)
            return self
        channels, resolution = 3, self.resolution
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

    def _check_own(self, ops: tuple[OpSpec, ...]) -> None:
        """Check that the operations are parts of one's own model, which need not be a chain."""
        if self.model is None or any(op.own is None for op in ops):
            raise ValueError("parts of one's own model need the key 'model', and no other parts")
        if [op.is_head for op in ops] != [False] * (len(ops) - 1) + [True]:
            raise ValueError("what no search changes must be one operation, the last")
        if ops[-1].out_channels != self.num_classes:
            raise ValueError(f"{ops[-1].out_channels} outputs for {self.num_classes} classes")
        for block in self.blocks[:-1]:
            layers = [op.own.layer for op in block.ops if op.own is not None]
            if layers != [self.model.parts.get(block.name)]:
                raise ValueError(f"block {block.name!r} is not the part of the model of that name")

    def ops(self) -> Iterator[OpSpec]:
        """All operations in the order of computation."""
        for block in self.blocks:
            yield from block.ops

    def origin_of(self, key: str) -> dict[str, str | int | float | bool | None]:
        """The provenance of a network with other layers that is made from this one.

        It names this network, and the device that it was found for. The recorded latencies are
        left out: they are not those of the new network.

        Args:
            key: what was done to this network, such as `converted_from`.
        """
        kept = {name: self.provenance[name] for name in ("device",) if name in self.provenance}
        return {key: self.name, **kept}

    def adapted(self, *, resolution: int | None = None, num_classes: int | None = None) -> Self:
        """The same network for another input resolution or number of classes.

        Raises:
            QuadranasError: the resolution is not a multiple of the network's total stride, or
                the number of classes is out of range.
        """
        classes = self.num_classes if num_classes is None else num_classes
        size = self.resolution if resolution is None else resolution
        check_num_classes(classes, self.name)
        if self.model is not None:
            check_own_classes(self.num_classes, classes)
            return self.model_copy(update={"resolution": size})
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

    def save(self, path: Path, *, replace: bool = True) -> None:
        """Write the architecture as JSON; operations and changes omit their default values.

        Args:
            replace: replace an existing file.
        """
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
        if self.model is None:
            del content["model"]
        write_json(path, content, replace=replace)


def check_resolution(resolution: int, ops: tuple[OpSpec, ...], name: str) -> None:
    """Check that an input resolution is a multiple of the total stride of a network.

    Raises:
        QuadranasError: it is not; the hint names the nearest valid resolutions.
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


def check_own_classes(own: int, num_classes: int) -> None:
    """Check the number of classes against the outputs of a user's own model, which are fixed.

    Raises:
        QuadranasError: they differ; gives both.
    """
    if own != num_classes:
        raise QuadranasError(
            f"your model has {own} outputs; the data have {num_classes} classes",
            f"Build it with {num_classes} outputs, and make its space again.",
        )


def check_num_classes(num_classes: int, name: str) -> None:
    """Check the number of classes against the range that a head supports.

    Raises:
        QuadranasError: out of range; the message gives the accepted range.
    """
    if not 1 <= num_classes <= MAX_CHANNELS:
        raise QuadranasError(
            f"{num_classes} classes do not fit {name}: the number must be 1 to {MAX_CHANNELS}"
        )


def load_architecture(path: str | Path) -> Architecture:
    """Read an architecture file.

    Raises:
        QuadranasError: the file is unreadable, has a newer format or contains an invalid value.
    """
    content: dict[str, Any] = read_json(path, "architecture")
    refuse_newer(content, FORMAT_VERSION, path)
    if "blocks" not in content:
        raise QuadranasError(f"{path}: not an architecture file: key 'blocks' is missing")
    return validate(Architecture, content, path)
