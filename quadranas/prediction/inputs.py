"""The shapes of an ONNX file's inputs: as in the file, or as the user names them."""

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadranas.errors import QuadranasError, printable, unknown
from quadranas.prediction.tensors import LARGEST, Shape, names_of, refusal

BATCH = re.compile(r"n|b|bs|.*batch.*", re.IGNORECASE)
"""Names of an open first axis that is the batch."""

NO_BATCH = re.compile(
    r"[hwtslcd]|.*(height|width|frame|time|token|seq|len|depth|step|point|box|roi|channel).*",
    re.IGNORECASE,
)
"""Names of an open first axis that is not."""

CHANNELS = (1, 2, 3, 4)
"""Sizes of the channel axis of an image without a batch axis."""


def parse_inputs(options: Iterable[str]) -> dict[str, Shape]:
    """The shapes in options of the form `NAME=1,96,96,3`.

    Raises:
        QuadranasError: an option of another form, or a name given twice.
    """
    shapes: dict[str, Shape] = {}
    for option in options:
        name, equals, sizes = option.rpartition("=")
        if not equals or not name or not re.fullmatch(r"([0-9]{1,15}(,[0-9]{1,15})*)?", sizes):
            raise QuadranasError(
                f"--input {option!r} is not a name and sizes",
                "Write it as NAME=SIZE,SIZE,..., for example: --input x=1,96,96,3",
            )
        if name in shapes:
            raise QuadranasError(f"--input names {name!r} twice", "Give each input once.")
        shapes[name] = tuple(int(size) for size in sizes.split(",") if size)
    return shapes


def fix_inputs(
    model: Any, path: Path, resolution: int | None, given: Mapping[str, Sequence[int]]
) -> None:
    """Fix the shapes of the inputs in place, and with them the sizes that share their names.

    Open sizes are taken from `given`, from `resolution` if it is clear which two axes are height
    and width, and are 1 for a batch. No other size is assumed.

    Raises:
        QuadranasError: a size remains open; a size or a name that the file contradicts.
    """
    inputs = _inputs(model, path)
    _require_known(given, inputs, path)
    for found in inputs:
        if found.name in given:
            found.fix(tuple(given[found.name]), path)
        elif found.own is None:
            raise refusal(
                path,
                f"its input {found.name!r} has no shape",
                f"Name it, for example: --input {found.option(resolution)}",
            )
    sizes = {found.symbols[0]: 1 for found in inputs if found.has_open_batch()}
    sizes |= _named_sizes(inputs)
    for found in inputs:
        found.take(sizes)
    if resolution is not None:
        _take_resolution(inputs, resolution, path)
    sizes |= _named_sizes(inputs)
    for found in inputs:
        found.take(sizes)
    if any(found.open_axes for found in inputs):
        raise _open_sizes(inputs, path, resolution)
    for found in inputs:
        found.store()
    _store_symbols(model, sizes)


@dataclass
class _Input:
    """An input and what is known of its shape.

    Args:
        own: the sizes in the file; None for an open one, or for all.
        symbols: the names of the open sizes; empty for those without a name.
        shape: the sizes known by now.
    """

    name: str
    value: Any
    own: tuple[int | None, ...] | None
    symbols: list[str]
    shape: list[int | None]

    @property
    def open_axes(self) -> list[int]:
        """The axes whose size is not known."""
        return [axis for axis, size in enumerate(self.shape) if size is None]

    def described(self) -> str:
        """Name and shape in the file, as in `x (batch, 3, 32, 32)`."""
        if self.own is None:
            return f"{self.name} (no shape)"
        pairs = zip(self.own, self.symbols, strict=True)
        return f"{self.name} ({', '.join(str(size or name or '?') for size, name in pairs)})"

    def has_open_batch(self) -> bool:
        """Whether the first size is open and is a batch, by its name or by the number of axes."""
        if not self.shape or self.shape[0] is not None or NO_BATCH.fullmatch(self.symbols[0]):
            return False
        return bool(BATCH.fullmatch(self.symbols[0])) or len(self.shape) >= 4

    def take(self, sizes: Mapping[str, int]) -> None:
        """Fill in the sizes whose names are known, and the batch."""
        if self.has_open_batch():
            self.shape[0] = sizes.get(self.symbols[0], 1) if self.symbols[0] else 1
        for axis in self.open_axes:
            if self.symbols[axis]:
                self.shape[axis] = sizes.get(self.symbols[axis])

    def fix(self, shape: Shape, path: Path) -> None:
        """Take the shape that the user names.

        Raises:
            QuadranasError: sizes that are not positive integers, or not those of the file.
        """
        text = ",".join(map(str, shape))
        if any(type(size) is not int or size < 1 for size in shape) or math.prod(shape) > LARGEST:
            raise QuadranasError(
                f"input {self.name!r} cannot have the shape {text}",
                f"Sizes are integers from 1, with at most {LARGEST:.0e} elements in all.",
            )
        own = self.own
        if own is None:
            own, self.symbols = (None,) * len(shape), [""] * len(shape)
        elif len(shape) != len(own):
            raise refusal(
                path,
                f"its input {self.described()} has {len(own)} sizes, not {len(shape)} ({text})",
                f"Name all sizes, for example: --input {self.option(None)}",
            )
        for axis, (size, fixed) in enumerate(zip(shape, own, strict=True)):
            if fixed not in (None, size):
                raise refusal(
                    path,
                    f"dimension {axis} of its input {self.described()} is fixed at {fixed}, "
                    f"not {size}",
                    f"Keep the fixed sizes, for example: --input {self.option(None)}",
                )
        self.shape = list(shape)

    def image_axes(self, resolution: int) -> tuple[int, int] | None:
        """The two neighbouring axes that can be the height and width of a square image."""
        rank = len(self.shape)
        pairs = [
            (axis, axis + 1)
            for axis in range(1 if rank >= 4 else 0, rank - 1)
            if all(size in (None, resolution) for size in self.shape[axis : axis + 2])
        ]
        if rank == 3 and self.own is not None:  # without a batch: channels first or last
            pairs = [pair for pair in pairs if self.own[2 - 2 * pair[0]] in CHANNELS]
        elif rank < 4:
            return None
        fixed = [pair for pair in pairs if not set(pair) & set(self.open_axes)]
        whole = [pair for pair in pairs if set(self.open_axes) <= set(pair)]
        return next(iter(fixed or whole), None)

    def option(self, resolution: int | None) -> str:
        """The value of an option that names every size; open ones get common sizes."""
        example = list(self.shape) if self.own is not None else [1, 3, None, None]
        if self.has_open_batch():
            example[0] = 1
        open_axes = [axis for axis, size in enumerate(example) if size is None]
        if open_axes == [1, 2, 3]:
            example[1] = 3
        is_image = len(example) > 2 and len([size for size in example if size is None]) == 2
        usual = (resolution or 224) if is_image else 128
        sizes = ",".join(str(usual if size is None else size) for size in example)
        return shlex.quote(f"{self.name}={sizes}")

    def store(self) -> None:
        """Write the shape into the file's description of the input."""
        shape = self.value.type.tensor_type.shape
        del shape.dim[:]
        shape.SetInParent()
        for size in self.shape:
            shape.dim.add().dim_value = size


def _inputs(model: Any, path: Path) -> list[_Input]:
    """The inputs that are no stored weights."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        name = printable(*names_of([value.name]))
        if value.type.WhichOneof("value") not in ("tensor_type", None):
            raise refusal(path, f"its input {name!r} is not a tensor")
        has_rank = value.type.tensor_type.HasField("shape")
        dims = value.type.tensor_type.shape.dim if has_rank else []
        own = [dim.dim_value if dim.dim_value > 0 else None for dim in dims]
        symbols = [printable(*names_of([dim.dim_param])) for dim in dims]
        inputs.append(
            _Input(
                name=name,
                value=value,
                own=tuple(own) if has_rank else None,
                symbols=symbols,
                shape=own,
            )
        )
    return inputs


def _named_sizes(inputs: Iterable[_Input]) -> dict[str, int]:
    """The known sizes that have a name."""
    pairs = [pair for found in inputs for pair in zip(found.symbols, found.shape, strict=True)]
    return {name: size for name, size in pairs if name and size is not None}


def _require_known(
    given: Mapping[str, Sequence[int]], inputs: Sequence[_Input], path: Path
) -> None:
    names = [found.name for found in inputs]
    for name in given:
        if name not in names:
            shapes = ", ".join(found.described() for found in inputs)
            raise unknown("input", name, names, f"The inputs of {path}: {shapes}.")


def _take_resolution(inputs: list[_Input], resolution: int, path: Path) -> None:
    """Fill in height and width of the images among the inputs.

    Raises:
        QuadranasError: no input is an image of that size.
    """
    used = False
    for found in inputs:
        axes = found.image_axes(resolution)
        if axes is not None:
            used = True
            for axis in axes:
                found.shape[axis] = resolution
    if used or any(found.open_axes for found in inputs):
        return
    for found in inputs:
        if len(found.shape) == 4:
            axis = 1 if found.shape[3] in CHANNELS and found.shape[1] not in CHANNELS else 2
            raise refusal(
                path,
                f"its input {found.name!r} has the fixed size {found.shape[axis]}, "
                f"not {resolution}",
                "Omit --resolution, or export the network for that size.",
            )
    shapes = ", ".join(found.described() for found in inputs)
    raise refusal(
        path,
        f"no input is an image of {resolution}x{resolution} pixels: {shapes}",
        "Omit --resolution.",
    )


def _open_sizes(inputs: list[_Input], path: Path, resolution: int | None) -> QuadranasError:
    """The error for sizes that remain open: all inputs, and options that name every size."""
    unknown_inputs = [found for found in inputs if found.open_axes]
    first = unknown_inputs[0]
    options = " ".join(f"--input {found.option(resolution)}" for found in unknown_inputs)
    is_square = all(found.image_axes(224) is not None for found in unknown_inputs)
    shorter = " or, for square images: --resolution 224" if is_square else ""
    return refusal(
        path,
        f"dimension {first.open_axes[0]} of its input {first.name!r} is dynamic; "
        f"inputs: {', '.join(found.described() for found in inputs)}",
        f"Name the sizes to predict for, for example: {options}{shorter}",
    )


def _store_symbols(model: Any, sizes: Mapping[str, int]) -> None:
    """Fill in sizes that share a name with a size of an input, wherever the file has them."""
    for value in (*model.graph.value_info, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
