"""Names of classes, which are the labels in files, pages and terminals."""

import re
from collections.abc import Sequence
from unicodedata import category, normalize

from quadranas.errors import QuadranasError, printable

UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that a name must not contain: control characters, bytes that are not UTF-8,
separators of lines and paragraphs."""


def check_class_name(name: str, where: str, what: str = "class folder") -> None:
    """Refuse a class whose name cannot be a label.

    Args:
        where: description of the data, for the message.
        what: what the name is of, for the message.

    Raises:
        QuadranasError: the name is not UTF-8 or holds control characters.
    """
    if all(category(character) not in UNWRITABLE for character in name):
        return
    raise QuadranasError(
        f"{what} '{printable(name)}' of {where} has a name that cannot be a label: it is "
        "not UTF-8 or holds control characters",
        f"Rename the {what.split()[-1]}; its name is the label that results and files contain.",
    )


def alike_warnings(class_names: Sequence[str]) -> list[str]:
    """A warning for each group of classes whose names are probably meant to be one.

    They differ only in upper and lower case, in spaces, hyphens and underscores, or in how Unicode
    writes the same characters.
    """
    groups: dict[str, list[str]] = {}
    for name in class_names:
        plain = re.sub(r"[\s_-]+", " ", normalize("NFKC", name).casefold()).strip()
        groups.setdefault(plain, []).append(name)
    return [
        f"the classes {', '.join(map(repr, group))} have nearly the same name; if they are one, "
        "put their images into one folder"
        for group in groups.values()
        if len(group) > 1
    ]
