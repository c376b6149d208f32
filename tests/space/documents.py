"""The content of space files, and how it is changed."""

from collections.abc import Callable
from typing import Any

WriteSpace = Callable[[dict[str, Any]], str]


def change(content: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted key path; `...` removes the key."""
    place: Any = content
    *keys, last = (int(key) if key.isdigit() else key for key in path.split("."))
    for key in keys:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
