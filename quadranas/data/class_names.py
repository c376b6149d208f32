"""Names of classes, which are the labels in files, pages and terminals."""

from unicodedata import category

from quadranas.errors import QuadranasError, printable

UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that a name must not contain: control characters, bytes that are not UTF-8,
separators of lines and paragraphs."""


def check_class_name(name: str, where: str) -> None:
    """Refuse a class folder whose name cannot be a label.

    Args:
        where: description of the data, for the message.

    Raises:
        QuadranasError: the name is not UTF-8 or holds control characters.
    """
    if all(category(character) not in UNWRITABLE for character in name):
        return
    raise QuadranasError(
        f"class folder '{printable(name)}' of {where} has a name that cannot be a label: it is "
        "not UTF-8 or holds control characters",
        "Rename the folder; its name is the label that results and files contain.",
    )
