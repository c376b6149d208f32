"""The YAML format of search spaces, and the SearchSpace that a file describes."""

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Self, TypeAlias

from pydantic import Field, ValidationError, model_validator

from quadranas.errors import QuadranasError, nearest, unknown
from quadranas.files import file_name, read_yaml, refuse_existing, shipped
from quadranas.space.operation import HEADS, OP_RULES, OpSpec
from quadranas.space.own_space_file import OwnSpaceFile
from quadranas.space.search_space import SearchSpace, Slot, SpaceBlock
from quadranas.validation import Frozen, describe_faults, validate

MAX_DEPTH = 999
MAX_CANDIDATES = 20_000
"""Maximum number of candidates of a space, summed over the slots of all blocks. A supernet holds
the weights of all of them; the largest shipped space has 216."""


def _check_body_kind(kind: str) -> None:
    known = sorted(set(OP_RULES) - set(HEADS))
    if kind not in known:
        raise ValueError(
            f"unknown kind {kind!r}; accepted: {', '.join(known)}{nearest(kind, known)}"
        )


class SlotFile(Frozen):
    """A slot of every block of a stage; lists are the values to search over.

    Args:
        kind: kind of the operation, such as `quadratic_depthwise`, `feed_forward`,
            `quadratic_convnext`, `mbconv` or `quadratic_mbconv`.
        kernel_size: kernel sizes to search over, in pixels.
        expand_ratio: expansion ratios to search over: channels inside the operation, relative to
            its input's.
    """

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
    """The operation before a stage's blocks; it changes width and resolution.

    Args:
        kind: kind of the operation: `patch_stem`, `downsample`, `conv_bn`, `mbconv` or
            `quadratic_mbconv`.
        kernel_size, stride: size and stride of its kernel, in pixels.
    """

    kind: str
    kernel_size: int
    stride: int

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_body_kind(self.kind)
        return self


class StageFile(Frozen):
    """A sequence of blocks of one width.

    Args:
        name: name of the stage; empty: `stage1`, `stage2` ...
        entry: the operation before the blocks; null: none.
        stride: stride of the first block, in pixels, for stages without an `entry`.
        depth: minimum and maximum number of blocks; those beyond the minimum are optional.
        slots: the operations of every block, in order; each kind at most once.
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
                f"depth must be [min, max] with 0 <= min <= max and max from 1 to {MAX_DEPTH}, "
                f"got {[low, high]}"
            )
        if low == 0 and self.entry is None:
            raise ValueError("a stage without an entry needs at least one block")
        kinds = [slot.kind for slot in self.slots]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"two slots of a block share a kind: {kinds}")
        return self

    @property
    def num_candidates(self) -> int:
        """Number of candidates in the slots of all blocks."""
        return self.depth[1] * sum(
            len(slot.kernel_size) * len(slot.expand_ratio) for slot in self.slots
        )


class SpaceFile(Frozen):
    """A search space as written in YAML.

    A file may begin with `extends: NAME` (or the path of another file, relative to its own
    folder), and then needs only a `name` and the keys that differ, such as `widths`.

    Args:
        extends: the space that the other keys change; `load_space_file` fills its keys in, so that
            this one is always `None` here.
        name: name of the space and of its tables, `latency_tables/NAME/DEVICE.json`.
        source: where the space comes from, in words.
        resolution: height and width of the input, in pixels.
        num_classes: number of classes that latency tables are made for.
        widths: number of channels of each stage.
        stages: the stages in order.
        head: kind of the classifier: `norm_head` or `linear_head`.
    """

    extends: None = None
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
        num_candidates = sum(stage.num_candidates for stage in self.stages)
        if num_candidates > MAX_CANDIDATES:
            raise ValueError(
                f"the space has {num_candidates:,} candidates; at most {MAX_CANDIDATES:,} are "
                "accepted (depth x kernel sizes x expansion ratios, summed over slots and stages)"
            )
        build_space(self)
        return self


AnySpaceFile: TypeAlias = SpaceFile | OwnSpaceFile


def build_space(file: AnySpaceFile) -> SearchSpace:
    """Resolve a space file: compute the channels and resolution of every candidate.

    Raises:
        ValueError: a candidate has an invalid shape, or two stages share a name; names the stage.
    """
    if isinstance(file, OwnSpaceFile):
        return file.space()
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


def new_space_path(output: str | Path | None, source: str) -> Path:
    """The path of a new space file.

    Args:
        output: as the user names it; None for a name after the source.

    Raises:
        QuadranasError: it exists, or is no YAML file.
    """
    path = Path(output or f"{file_name(Path(source).stem)}-space.yaml")
    if path.suffix not in (".yaml", ".yml"):
        raise QuadranasError(
            f"cannot write the space to {path}: its name does not end with .yaml",
            "Name a file such as --output my-space.yaml.",
        )
    refuse_existing(path)
    return path


def name_after(path: Path) -> str:
    """The name of a space after its file, in the characters that such a name can have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "space"


def space_files() -> dict[str, Path]:
    """The shipped spaces by name."""
    return {path.stem: path for path in sorted(shipped("search_spaces").glob("*.yaml"))}


def load_space(
    space: str | Path | SearchSpace, *, widths: tuple[int, ...] | None = None
) -> SearchSpace:
    """Load a shipped space by name, or any space from a YAML file.

    A file may start with `extends: NAME` (or the path of another file, relative to its own
    folder) and then needs only the keys that differ, such as `widths`.

    Args:
        space: name, path, or a space that is loaded already.
        widths: replaces the widths in the file.

    Raises:
        QuadranasError: unknown name, unreadable file or invalid value; names file, key and value.
    """
    if isinstance(space, SearchSpace):
        return space
    return build_space(load_space_file(str(space), widths=widths))


def load_whole_space(path: Path) -> SearchSpace:
    """Load the space of a run folder; errors as in `load_whole_space_file`."""
    return build_space(load_whole_space_file(path))


def load_whole_space_file(path: Path) -> AnySpaceFile:
    """Load the space file of a run folder, which is complete: it may extend no other file.

    Raises:
        QuadranasError: as in `load_space`, or the file extends another one.
    """
    if "extends" in read_yaml(path, "search space"):
        raise QuadranasError(
            f"{path}: extends: the space of a run folder is complete and reads no other file",
            "Name the space itself, a file of your own, with --space.",
        )
    return load_space_file(str(path))


def load_space_file(name_or_path: str, *, widths: tuple[int, ...] | None = None) -> AnySpaceFile:
    """Load the content of a space file, with the keys of the space it extends filled in.

    Arguments and errors are those of `load_space`.
    """
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
    if "digest" in content:
        return validate(OwnSpaceFile, content, path)
    return validate(SpaceFile, content, path)


def _space_path(name_or_path: str, folder: Path = Path()) -> Path:
    files = space_files()
    if name_or_path in files:
        return files[name_or_path]
    path = folder / name_or_path
    if path.suffix in (".yaml", ".yml"):
        return path
    raise unknown("search space", name_or_path, files, "Name one of these, or a .yaml file.")
