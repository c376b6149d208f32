"""The file of a search space made from a user's own model: its parts that may change."""

from typing import Self

from pydantic import Field, model_validator

from quadranas.space.architecture import OwnModel
from quadranas.space.operation import MAX_CHANNELS, MAX_RESOLUTION, LayerChange, OpSpec, OwnPart
from quadranas.space.search_space import SearchSpace, Slot, SpaceBlock
from quadranas.validation import Frozen

MAX_BLOCK_CANDIDATES = 64
"""Maximum number of candidates of a block; each is priced and trained by itself."""

REST = "model"
"""The name of the block that holds everything which no search changes."""


class OwnCandidate(Frozen):
    """One candidate of a block.

    Args:
        changes: what is changed in the block, by paths in the model; empty for the block as it is.
        params, macs: number of parameters, and of multiply-accumulates at batch 1.
    """

    changes: tuple[LayerChange, ...] = ()
    params: int = Field(ge=0, le=10**18)
    macs: int = Field(ge=0, le=10**18)


class OwnBlock(Frozen):
    """A part of the model that a search changes.

    Args:
        name: name of the block.
        layer: its path in the model.
        optional: whether it may be skipped, since its input is added to its output.
        added: whether the code around it does that, so that it is skipped by returning zeros.
        in_channels, out_channels: number of channels of its input and output.
        resolution: height of its input, in pixels; 1 for inputs that are no feature maps.
        candidates: the candidates, from small to large.
    """

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    layer: str = Field(min_length=1)
    optional: bool = False
    added: bool = False
    in_channels: int = Field(ge=1, le=MAX_CHANNELS)
    out_channels: int = Field(ge=1, le=MAX_CHANNELS)
    resolution: int = Field(ge=1, le=MAX_RESOLUTION)
    candidates: tuple[OwnCandidate, ...] = Field(min_length=1, max_length=MAX_BLOCK_CANDIDATES)

    def space_block(self) -> SpaceBlock:
        """The block of the search space."""
        specs = tuple(
            OpSpec(
                kind="own_block",
                in_channels=self.in_channels,
                out_channels=self.out_channels,
                resolution=self.resolution,
                own=OwnPart(layer=self.layer, **dict(candidate)),
            )
            for candidate in self.candidates
        )
        return SpaceBlock(self.name, self.name, (Slot("own_block", specs),), self.optional)


class OwnSpaceFile(Frozen):
    """A search space made from a user's own model; `make_space` writes it.

    Args:
        name: name of the space and of its tables, `latency_tables/NAME/DEVICE.json`.
        model: where the model comes from, in words. Its code is never loaded from here.
        digest: identifies the model's layers and the shapes of its tensors.
        resolution: height and width of the input, in pixels.
        num_classes: number of outputs of the model.
        rest_params, rest_macs: number of parameters and multiply-accumulates outside the blocks.
        blocks: the parts that a search changes, in the order of the model.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: str = Field(max_length=1000)
    digest: str = Field(pattern=r"^[0-9a-f]{16}$")
    resolution: int = Field(ge=1, le=MAX_RESOLUTION)
    num_classes: int = Field(ge=1, le=MAX_CHANNELS)
    rest_params: int = Field(ge=0, le=10**18)
    rest_macs: int = Field(ge=0, le=10**18)
    blocks: tuple[OwnBlock, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what in ("name", "layer"):
            values = [getattr(block, what) for block in self.blocks]
            shared = next((value for value in values if values.count(value) > 1), None)
            if shared is not None or (what == "name" and REST in values):
                raise ValueError(f"two blocks have the {what} {shared or REST!r}")
        layers = [f"{block.layer}." for block in self.blocks]
        inner = next((a for a in layers for b in layers if a != b and a.startswith(b)), None)
        if inner is not None:
            raise ValueError(f"block {inner[:-1]!r} is inside of another one")
        for block in self.blocks:
            if len(set(block.candidates)) < len(block.candidates):
                raise ValueError(f"block {block.name!r} has the same candidate twice")
            if block.optional and block.in_channels != block.out_channels:
                raise ValueError(f"block {block.name!r} changes the width, and cannot be skipped")
        return self

    def space(self) -> SearchSpace:
        """The search space."""
        rest = OpSpec(
            kind="own_rest",
            in_channels=3,
            out_channels=self.num_classes,
            resolution=self.resolution,
            own=OwnPart(params=self.rest_params, macs=self.rest_macs),
        )
        blocks = [block.space_block() for block in self.blocks]
        return SearchSpace(
            self.name,
            self.resolution,
            self.num_classes,
            (*blocks, SpaceBlock(REST, REST, (Slot("own_rest", (rest,)),))),
            OwnModel(
                source=self.model,
                digest=self.digest,
                parts={block.name: block.layer for block in self.blocks},
                added=tuple(block.name for block in self.blocks if block.added),
            ),
        )
