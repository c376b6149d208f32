"""User errors: what they print, with which code, and the names they suggest."""

import pytest

from quadranas.errors import (
    BudgetError,
    MissingEntryError,
    MissingExtraError,
    PromiseMissedError,
    QuadranasError,
    nearest,
    printable,
    refuse_unwritable,
    unknown,
)


def test_the_hint_is_a_line_of_its_own() -> None:
    error = QuadranasError("no such thing", "Make it with: make thing")
    assert str(error) == "no such thing\nMake it with: make thing"
    assert (error.message, error.hint) == ("no such thing", "Make it with: make thing")
    assert str(QuadranasError("no such thing")) == "no such thing"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (QuadranasError, 2),
        (BudgetError, 2),
        (MissingEntryError, 2),
        (MissingExtraError, 2),
        (PromiseMissedError, 3),
    ],
)
def test_exit_codes(kind: type[QuadranasError], code: int) -> None:
    error = kind("text")
    assert isinstance(error, QuadranasError)
    assert error.exit_code == code


@pytest.mark.parametrize(
    ("word", "suffix"),
    [
        ("vpx", "; did you mean 'vpu'?"),
        ("gpus", "; did you mean 'gpu'?"),
        ("abacus", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_suggested(word: str, suffix: str) -> None:
    assert nearest(word, iter(["cpu", "gpu", "vpu"])) == suffix


def test_an_unknown_name_lists_what_is_accepted() -> None:
    error = unknown("device", "gpu2", iter(["vpu", "cpu", "gpu"]), "Name one of these.")
    assert error.message == ("unknown device 'gpu2'; accepted: cpu, gpu, vpu; did you mean 'gpu'?")
    assert error.hint == "Name one of these."


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("café 子", "café 子"),
        ("a\nb\x1b", r"a\nb\x1b"),
        ("caf\udce9", r"caf\udce9"),
        ("\x85", r"\x85"),
    ],
)
def test_names_are_printed_in_one_line(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_names_that_are_not_utf8_are_refused() -> None:
    refuse_unwritable("café\n", "the output")
    with pytest.raises(QuadranasError, match=r"the output 'caf\\udce9' is not UTF-8"):
        refuse_unwritable("caf\udce9", "the output")
