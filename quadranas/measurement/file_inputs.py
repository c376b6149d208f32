"""The shapes that the inputs of any model file are timed with."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from quadranas.errors import QuadranasError, unknown

Shape = tuple[int, ...]
OpenShape = tuple[int | None, ...]

MAX_ELEMENTS = 2**31
"""Limit on the elements of an input."""


def closed_shapes(
    path: Path,
    inputs: Mapping[str, OpenShape],
    *,
    batch: int,
    resolution: int | None,
    given: Mapping[str, Sequence[int]],
) -> dict[str, Shape]:
    """The shapes of a file's inputs, without open sizes.

    Args:
        inputs: the shapes in the file; `None` for an open size.
        batch: size of an open first axis of an image.
        resolution: height and width of images, where the file leaves them open.
        given: whole shapes by the names of inputs.

    Raises:
        QuadranasError: a size remains open, or the file contradicts a given one.
    """
    for name in given:
        if name not in inputs:
            raise unknown("input", name, inputs, f"The inputs of {path}: {_text(inputs)}.")
    shapes = {}
    for name, sizes in inputs.items():
        closed = tuple(given[name]) if name in given else _closed(sizes, batch, resolution)
        _check(path, name, sizes, closed)
        shapes[name] = tuple(size for size in closed if size is not None)
    if resolution is not None and not any(resolution in shape for shape in shapes.values()):
        raise QuadranasError(
            f"{path}: no input has the size {resolution}; its inputs: {_text(inputs)}",
            "Omit --resolution.",
        )
    return shapes


def _closed(sizes: OpenShape, batch: int, resolution: int | None) -> OpenShape:
    if len(sizes) != 4:
        return sizes
    filled = (batch, sizes[1], resolution, resolution)
    return tuple(new if old is None else old for old, new in zip(sizes, filled, strict=True))


def _check(path: Path, name: str, own: OpenShape, shape: OpenShape) -> None:
    """Refuse open sizes, and sizes that the file does not have."""
    fits = len(own) == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(own, shape, strict=True)
    )
    if not fits:
        raise QuadranasError(
            f"{path}: its input {_text({name: own})} cannot have the shape "
            f"{','.join(map(str, shape))}",
            "Keep the number of sizes and the fixed ones.",
        )
    if None in shape:
        example = ",".join(str(1 if size is None else size) for size in shape)
        images = " or, for images: --resolution 224" if len(shape) == 4 else ""
        raise QuadranasError(
            f"{path}: its input {_text({name: own})} has open sizes",
            f"Name them, for example: --input {name}={example}{images}",
        )
    sizes = [size for size in shape if size is not None]
    if any(size < 1 for size in sizes) or math.prod(sizes) > MAX_ELEMENTS:
        raise QuadranasError(
            f"{path}: its input {name!r} cannot have the shape {','.join(map(str, sizes))}",
            f"Sizes are at least 1, with at most {MAX_ELEMENTS} elements in all.",
        )


def _text(inputs: Mapping[str, OpenShape]) -> str:
    return ", ".join(
        f"{name} ({', '.join('?' if size is None else str(size) for size in sizes)})"
        for name, sizes in inputs.items()
    )
