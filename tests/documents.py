"""A document with keys of many types, as `validate` checks it."""

from pydantic import Field

from quadranas.validation import Frozen


class Inner(Frozen):
    kind: str
    numbers: tuple[int | float, ...] = Field(default=(1,), min_length=1)


class Outer(Frozen):
    name: str
    size: int = Field(default=1, ge=1, le=9)
    pair: tuple[int, int] = (1, 2)
    items: tuple[Inner, ...] = Field(default=(), min_length=1)
    named: dict[str, Inner] = Field(default_factory=dict)
    maybe: Inner | None = None
    notes: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
