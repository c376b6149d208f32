"""The commands of the quadratic toolkit."""

from collections.abc import Callable

COMMANDS: dict[str, Callable[..., None]] = {}
"""The commands of this file by name."""
