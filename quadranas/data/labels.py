"""Class names and labels from the values that shards store for their images."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from quadranas.data.class_names import check_class_name
from quadranas.data.source import LAYOUT
from quadranas.errors import QuadranasError, some

MAX_CLASSES = 100_000


def label_values(
    values: Sequence[int | str], names: Sequence[str] | None, where: str
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """The classes of images, and the index of its class for each.

    Args:
        values: the label of every image: the index or the name of its class.
        names: the names of all classes in the order of their indices, if they are known.
            Otherwise the classes are the values that occur: numbers in their order, or texts in
            alphabetical order.
        where: description of the data, for messages.

    Raises:
        QuadranasError: a label without a class, or fewer than two classes.
    """
    are_numbers = all(isinstance(value, int) for value in values)
    found = sorted(set(values)) if are_numbers else sorted(set(map(str, values)))
    known = list(names or ())
    if are_numbers:
        _check_numbers([int(value) for value in found], known, where)
        order = {number: number for number in range(len(known))} if known else {}
        classes = known or [str(number) for number in found]
        order = order or {int(number): index for index, number in enumerate(found)}
        labels = [order[int(value)] for value in values]
    else:
        classes = known or [str(name) for name in found]
        indices = {name: index for index, name in enumerate(classes)}
        if strangers := [str(name) for name in found if name not in indices]:
            raise QuadranasError(
                f"{where} has labels that are no names of its classes: {some(strangers)}",
                f"Classes: {some(classes, 10)}.",
            )
        labels = [indices[str(value)] for value in values]
    _check_classes(classes, where)
    return tuple(classes), np.array(labels, dtype=np.int64)


def _check_numbers(found: Sequence[int], names: Sequence[str], where: str) -> None:
    """Refuse numbers that stand for no class; some data sets mark unlabelled images with -1."""
    limit = len(names) or None
    wrong = [n for n in found if n < 0 or (limit is not None and n >= limit)]
    if wrong:
        accepted = f"0 to {limit - 1}" if limit else "0 and above"
        raise QuadranasError(
            f"{where} has labels without a class: {some([str(n) for n in wrong])}; "
            f"accepted: {accepted}",
            "Images without labels, as in the test split of a competition, cannot be used.",
        )


def _check_classes(classes: Sequence[str], where: str) -> None:
    for name in classes:
        check_class_name(name, where, "class")
    doubles = sorted(name for name, count in Counter(classes).items() if count > 1)
    if doubles:
        raise QuadranasError(f"{where} has several classes of one name: {some(doubles)}", LAYOUT)
    if len(classes) < 2:
        one = f" {classes[0]!r}" if classes else ""
        raise QuadranasError(
            f"{where} has only one class,{one}; at least 2 are needed"
            if classes
            else f"{where} contains no images",
            LAYOUT,
        )
    if len(classes) > MAX_CLASSES:
        raise QuadranasError(
            f"{where} has {len(classes)} classes; accepted: up to {MAX_CLASSES}",
            "Check that the label is a class, not the number of the image.",
        )
