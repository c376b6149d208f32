"""SearchSpace: a sequence of blocks, each with slots that list their candidate operations.

A space is data: a YAML file of stages, each with a width, a depth range and the slots of its
blocks.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from quadranas.errors import QuadranasError, nearest, unknown
from quadranas.files import describe_faults, read_yaml, shipped, validate
from quadranas.space.architecture import (
    HEADS,
    OP_RULES,
    Architecture,
    Block,
    Frozen,
    OpSpec,
    check_num_classes,
)

MAX_DEPTH = 999
SKIPPED = None
"""The choice for a block that is not part of the network."""

OpCost = Callable[[OpSpec], float]
Choices = Mapping[str, tuple[int, ...] | None]
"""Per block name: the chosen candidate of each slot, or `SKIPPED`."""


def _check_body_kind(kind: str) -> None:
    known = sorted(set(OP_RULES) - set(HEADS))
    if kind not in known:
        raise ValueError(
            f"unknown kind {kind!r}; accepted: {', '.join(known)}{nearest(kind, known)}"
        )


class SlotFile(Frozen):
    """A slot of every block of a stage; lists are the values searched over."""

    kind: str
    kernel_size: tuple[int, ...] = Field(default=(1,), min_length=1)
    expand_ratio: tuple[int | float, ...] = Field(default=(1,), min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_body_kind(self.kind)
        for values in (self.kernel_size, self.expand_ratio):
            if len(set(values)) < len(values):
                raise ValueError(f"a value is listed twice in {list(values)}")
        return self


class EntryFile(Frozen):
    """The operation in front of a stage's blocks that changes width and resolution."""

    kind: str
    kernel_size: int
    stride: int

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_body_kind(self.kind)
        return self


class StageFile(Frozen):
    """A run of blocks of one width.

    Args:
        depth: fewest and most blocks; those beyond the fewest may be skipped.
        stride: of the first block, where no `entry` changes the resolution.
    """

    name: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    entry: EntryFile | None = None
    stride: int = Field(default=1, ge=1)
    depth: tuple[int, int]
    slots: tuple[SlotFile, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.depth
        if not 0 <= low <= high or high < 1 or high > MAX_DEPTH:
            raise ValueError(
                f"depth must be [fewest, most] with 0 <= fewest <= most and most from 1 to "
                f"{MAX_DEPTH}, got {[low, high]}"
            )
        if low == 0 and self.entry is None:
            raise ValueError("a stage without an entry needs at least one block")
        kinds = [slot.kind for slot in self.slots]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"two slots of a block share a kind: {kinds}")
        return self


class SpaceFile(Frozen):
    """A search space as written in YAML."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    source: str = ""
    resolution: int = Field(ge=1)
    num_classes: int = Field(default=1000, ge=2)
    widths: tuple[int, ...] = Field(min_length=1)
    stages: tuple[StageFile, ...] = Field(min_length=1)
    head: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.widths) != len(self.stages):
            raise ValueError(f"{len(self.widths)} widths for {len(self.stages)} stages")
        if self.head not in HEADS:
            known = ", ".join(HEADS)
            raise ValueError(
                f"unknown head {self.head!r}; accepted: {known}{nearest(self.head, HEADS)}"
            )
        build_space(self)
        return self


@dataclass(frozen=True)
class Slot:
    """One decision: exactly one candidate is used when the block is kept."""

    name: str
    candidates: tuple[OpSpec, ...]


@dataclass(frozen=True)
class SpaceBlock:
    """A block of the supernet: its slots in order, and whether it may be skipped."""

    name: str
    stage: str
    slots: tuple[Slot, ...]
    optional: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether nothing about the block is searched."""
        return not self.optional and all(len(slot.candidates) == 1 for slot in self.slots)


@dataclass(frozen=True)
class SearchSpace:
    """A resolved search space: the skeleton of every network in it."""

    name: str
    resolution: int
    num_classes: int
    blocks: tuple[SpaceBlock, ...]

    @cached_property
    def digest(self) -> str:
        """Identifies the searched blocks, whatever the number of classes."""
        specs = [
            [block.name, block.optional, [list(map(str, slot.candidates)) for slot in block.slots]]
            for block in self.blocks[:-1]
        ]
        return hashlib.sha256(json.dumps(specs).encode()).hexdigest()[:16]

    @property
    def num_architectures(self) -> int:
        """Distinct networks: skipping one block or another of a stage gives the same network."""
        total = 1
        for stage in dict.fromkeys(block.stage for block in self.blocks):
            depths = [1]
            for block in (b for b in self.blocks if b.stage == stage):
                options = math.prod(len(slot.candidates) for slot in block.slots)
                if block.optional:
                    depths.append(depths[-1] * options)
                else:
                    depths = [count * options for count in depths]
            total *= sum(depths)
        return total

    def specs(self) -> tuple[OpSpec, ...]:
        """Every distinct operation of the space, in order."""
        candidates = (c for block in self.blocks for slot in block.slots for c in slot.candidates)
        return tuple(dict.fromkeys(candidates))

    def with_num_classes(self, num_classes: int) -> "SearchSpace":
        """The same space with another classifier.

        Raises:
            QuadranasError: there cannot be so many classes.
        """
        check_num_classes(num_classes, f"space {self.name}")
        *body, head = self.blocks
        slot = head.slots[0]
        spec = slot.candidates[0].model_copy(update={"out_channels": num_classes})
        new_head = replace(head, slots=(replace(slot, candidates=(spec,)),))
        return replace(self, num_classes=num_classes, blocks=(*body, new_head))

    def architecture(self, choices: Choices, name: str = "") -> Architecture:
        """The network that a choice per block describes; fixed blocks may be left out."""
        blocks = []
        for block in self.blocks:
            choice = choices.get(block.name, (0,) * len(block.slots))
            if choice is SKIPPED:
                assert block.optional, block.name
                continue
            ops = tuple(s.candidates[c] for s, c in zip(block.slots, choice, strict=True))
            blocks.append(Block(name=block.name, ops=ops))
        return Architecture(
            name=name or self.name,
            space=self.name,
            resolution=self.resolution,
            num_classes=self.num_classes,
            blocks=tuple(blocks),
        )

    def choices_of(self, architecture: Architecture) -> dict[str, tuple[int, ...] | None]:
        """The choices that give an architecture.

        Raises:
            QuadranasError: the architecture is not in this space; names the first misfit.
        """
        kept = {block.name: block for block in architecture.blocks}
        choices: dict[str, tuple[int, ...] | None] = {}
        for block in self.blocks:
            found = kept.pop(block.name, None)
            if found is None:
                if not block.optional:
                    raise self._foreign(architecture, f"block {block.name!r} is missing")
                choices[block.name] = SKIPPED
                continue
            if len(found.ops) != len(block.slots):
                raise self._foreign(architecture, f"block {block.name!r} has {len(found.ops)} ops")
            indices = []
            for slot, op in zip(block.slots, found.ops, strict=True):
                if op not in slot.candidates:
                    raise self._foreign(architecture, f"{block.name}: {op} is no candidate")
                indices.append(slot.candidates.index(op))
            choices[block.name] = tuple(indices)
        if kept:
            raise self._foreign(architecture, f"block {next(iter(kept))!r} is unknown")
        order = [name for name, choice in choices.items() if choice is not SKIPPED]
        for given, name in zip(architecture.blocks, order, strict=True):
            if given.name != name:
                raise self._foreign(architecture, f"{given.name!r} stands where {name!r} belongs")
        return choices

    def _foreign(self, architecture: Architecture, reason: str) -> QuadranasError:
        return QuadranasError(
            f"architecture {architecture.name!r} is not in space {self.name}: {reason}"
        )

    def extreme(self, cost: OpCost, *, largest: bool) -> Architecture:
        """The cheapest or the dearest network of the space under a cost per operation."""
        pick = max if largest else min
        choices: dict[str, tuple[int, ...] | None] = {}
        for block in self.blocks:
            best = [
                pick(range(len(slot.candidates)), key=lambda i, s=slot: cost(s.candidates[i]))  # type: ignore[misc]
                for slot in block.slots
            ]
            choices[block.name] = SKIPPED if block.optional and not largest else tuple(best)
        return self.architecture(choices)


def build_space(file: SpaceFile) -> SearchSpace:
    """Resolve a space file: channels and resolutions of every candidate.

    Raises:
        QuadranasError: a candidate's shape is impossible; names the stage.
    """
    blocks: list[SpaceBlock] = []
    labels = ["head"]
    channels, resolution = 3, file.resolution
    for index, (stage, width) in enumerate(zip(file.stages, file.widths, strict=True), start=1):
        name = stage.name or f"stage{index}"
        try:
            new = list(_stage_blocks(stage, name, channels, width, resolution))
        except ValidationError as error:
            fault = describe_faults(OpSpec, error)[0]
            raise ValueError(f"stage {index} ({name}): {fault}") from error
        blocks += new
        labels += dict.fromkeys(block.stage for block in new)
        channels, resolution = width, new[-1].slots[-1].candidates[0].out_resolution
    head = OpSpec(
        kind=file.head, in_channels=channels, out_channels=file.num_classes, resolution=resolution
    )
    blocks.append(SpaceBlock(name="head", stage="head", slots=(Slot(file.head, (head,)),)))
    shared = next((label for label in labels if labels.count(label) > 1), None)
    if shared is not None:
        raise ValueError(f"two stages share the name {shared.removesuffix('_entry')!r}")
    return SearchSpace(file.name, file.resolution, file.num_classes, tuple(blocks))


def _stage_blocks(
    stage: StageFile, name: str, channels: int, width: int, resolution: int
) -> Iterator[SpaceBlock]:
    stride = stage.stride
    if stage.entry is not None:
        spec = OpSpec(
            in_channels=channels, out_channels=width, resolution=resolution, **dict(stage.entry)
        )
        slot = Slot(spec.kind, (spec,))
        yield SpaceBlock(name=f"{name}_entry", stage=f"{name}_entry", slots=(slot,))
        channels, resolution = width, spec.out_resolution
    fewest, most = stage.depth
    for number in range(1, most + 1):
        slots = []
        for slot_file in stage.slots:
            specs = tuple(
                OpSpec(
                    kind=slot_file.kind,
                    in_channels=channels,
                    out_channels=width,
                    resolution=resolution,
                    kernel_size=kernel_size,
                    stride=stride,
                    expand_ratio=expand_ratio,
                )
                for kernel_size, expand_ratio in product(
                    slot_file.kernel_size, slot_file.expand_ratio
                )
            )
            slots.append(Slot(slot_file.kind, specs))
            channels, resolution, stride = width, specs[0].out_resolution, 1
        yield SpaceBlock(f"{name}_block{number}", name, tuple(slots), optional=number > fewest)


def space_files() -> dict[str, Path]:
    """The shipped spaces by name."""
    return {path.stem: path for path in sorted(shipped("search_spaces").glob("*.yaml"))}


def load_space(name_or_path: str, *, widths: tuple[int, ...] | None = None) -> SearchSpace:
    """A shipped space by name, or one's own from a YAML file.

    A file may start with `extends: NAME` (or a file beside it) and then needs only the keys it
    changes, such as `widths`. The argument `widths` does the same from Python.

    Raises:
        QuadranasError: unknown name, unreadable file, or a fault in it (file, key path, value).
    """
    return build_space(load_space_file(name_or_path, widths=widths))


def load_space_file(name_or_path: str, *, widths: tuple[int, ...] | None = None) -> SpaceFile:
    """The same as plain data, with what it extends filled in."""
    path = _space_path(name_or_path)
    content = read_yaml(path, "search space")
    base = content.pop("extends", None)
    if base is not None:
        if content.get("name") in (None, base):
            raise QuadranasError(f"{path}: name: a space that extends {base!r} needs its own name")
        content = read_yaml(_space_path(str(base), path.parent), "search space") | content
        if "extends" in content:
            raise QuadranasError(f"{path}: extends: {base!r} itself extends another space")
    if widths is not None:
        content["widths"] = list(widths)
        if "name" in content:
            content["name"] = f"{content['name']}-{'-'.join(map(str, widths))}"
    return validate(SpaceFile, content, path)


def _space_path(name_or_path: str, folder: Path = Path()) -> Path:
    files = space_files()
    if name_or_path in files:
        return files[name_or_path]
    path = folder / name_or_path
    if path.suffix in (".yaml", ".yml"):
        return path
    raise unknown("search space", name_or_path, files, "Name one of these, or a .yaml file.")
