"""Checking documents: what is said about faults."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from quadranas.errors import QuadranasError
from quadranas.files import read_json, read_yaml
from quadranas.validation import Frozen, environment_number, validate
from tests.documents import Outer


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "f.yaml: name: required key is missing"),
        ({"name": 3}, "f.yaml: name: Input should be a valid string (got 3)"),
        (
            {"name": "a", "sise": 3},
            "f.yaml: sise: unknown key (got 3); accepted: items, maybe, name, named, notes, pair, "
            "size; did you mean 'size'?",
        ),
        (
            {"name": "a", "zzzzzz": "v" * 100},
            "f.yaml: zzzzzz: unknown key; accepted: items, maybe, name, named, notes, pair, size",
        ),
        (
            {"name": "a", "size": 10},
            "f.yaml: size: Input should be less than or equal to 9 (got 10)",
        ),
        (
            {"name": "a", "items": [{"kind": "x"}, {"kind": "y", "number": [1]}]},
            "f.yaml: items.1.number: unknown key (got [1]); accepted: kind, numbers; "
            "did you mean 'numbers'?",
        ),
        ({"name": "a", "items": [{}]}, "f.yaml: items.0.kind: required key is missing"),
        (
            {"name": "a", "named": {"b": {"kynd": "x"}}},
            "f.yaml: named.b.kynd: unknown key (got 'x'); accepted: kind, numbers; "
            "did you mean 'kind'?\nf.yaml: named.b.kind: required key is missing",
        ),
        (
            {"name": "a", "maybe": {"kind": "x", "kin": 1}},
            "f.yaml: maybe.kin: unknown key (got 1); accepted: kind, numbers; "
            "did you mean 'kind'?",
        ),
        (
            {"name": "a", "items": [{"kind": "x", "numbers": [1, "b"]}]},
            "f.yaml: items.0.numbers.1: Input should be a valid integer or a valid number "
            "(got 'b')",
        ),
        (
            {"name": "a", "notes": {"str": [1]}},
            "f.yaml: notes.str: Input should be a valid string or a valid integer or "
            "a valid number or a valid boolean (got [1])",
        ),
        ({"name": "a", "pair": 3}, "f.yaml: pair: Input should be a valid list (got 3)"),
        ({"name": "a", "pair": [3]}, "f.yaml: pair.1: required value is missing"),
        (
            {"name": "a", "pair": [3, 4, 5]},
            "f.yaml: pair: List should have at most 2 items after validation, not 3 "
            "(got [3, 4, 5])",
        ),
        ({"name": "a", 1: 2}, "f.yaml: 1: Keys should be strings (got 1)"),
    ],
)
def test_messages_name_file_key_path_value_and_nearest_key(
    content: dict[str, Any], message: str
) -> None:
    with pytest.raises(QuadranasError) as caught:
        validate(Outer, content, "f.yaml")
    assert str(caught.value) == message


def test_a_long_key_is_cut() -> None:
    with pytest.raises(QuadranasError) as caught:
        validate(Outer, {"name": "a", "[" * 50_000: 1}, "f.yaml")
    assert str(caught.value).startswith(f"f.yaml: {'[' * 100}...: unknown key (got 1)")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", ["two", "-1", "", "1.0", "9" * 5000, "\x1b[31m"])
def test_numbers_of_the_environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert environment_number("LOCAL_WORLD_SIZE", 1, 1) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert environment_number("LOCAL_WORLD_SIZE", 1, 1) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", value)
    with pytest.raises(QuadranasError, match=r"LOCAL_WORLD_SIZE is '.*'; expected a number of at"):
        environment_number("LOCAL_WORLD_SIZE", 1, 1)


def test_at_most_five_faults_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {f"unknown{n}": n for n in range(20)}
    path, reads = tmp_path / "f.json", []
    path.write_text(json.dumps(wrong), encoding="utf-8")
    monkeypatch.setattr("quadranas.validation.line_of", lambda *place: reads.append(place))
    with pytest.raises(QuadranasError) as caught:
        validate(Outer, {"name": "a", **wrong}, path)
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (6, f"{path}: 15 more faults")
    assert len(reads) == 5  # the file is read for the lines of the listed faults only


def test_a_value_without_end_does_not_stall_the_message(tmp_path: Path) -> None:
    path = tmp_path / "laughs.yaml"
    lines = ["name: &l0 [ha, ha]"]
    lines += [f"l{n + 1}: &l{n + 1} [{', '.join([f'*l{n}'] * 9)}]" for n in range(12)]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(QuadranasError, match=r"name: Input should be a valid string \(got \['ha"):
        validate(Outer, read_yaml(path, "file"), path)


def test_a_number_too_long_to_print_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text(f"name: a\nsize: 0x{'f' * 5000}", encoding="utf-8")
    with pytest.raises(
        QuadranasError, match=r"size: Input should be less than or equal to 9, line 2$"
    ):
        validate(Outer, read_yaml(path, "file"), path)


class Numbers(Frozen):
    """Every kind of number, alone and inside others."""

    integer: int = 1
    number: float = Field(default=1.0, gt=0)
    flag: bool = False
    many: tuple[int | float, ...] = ()
    maybe: float | None = None
    nested: dict[str, tuple[float, ...]] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("integer", True, "integer: Input should be a valid integer (got True)"),
        ("integer", "3", "integer: Input should be a valid integer (got '3')"),
        ("integer", 3.0, "integer: Input should be a valid integer (got 3.0)"),
        ("number", True, "number: Input should be a valid number (got True)"),
        ("number", "0.5", "number: Input should be a valid number (got '0.5')"),
        ("number", 10**400, "number: Input should be a valid number"),
        ("flag", 1, "flag: Input should be a valid boolean (got 1)"),
        ("flag", "on", "flag: Input should be a valid boolean (got 'on')"),
        ("many", [1, "2"], "many.1: Input should be a valid integer or a valid number (got '2')"),
        ("many", [True], "many.0: Input should be a valid integer or a valid number (got True)"),
        ("maybe", "1", "maybe: Input should be a valid number (got '1')"),
        ("nested", {"a": [1, "b"]}, "nested.a.1: Input should be a valid number (got 'b')"),
    ],
)
def test_neither_texts_nor_booleans_are_numbers(key: str, value: Any, fault: str) -> None:
    with pytest.raises(QuadranasError) as caught:
        validate(Numbers, {key: value}, "f.yaml")
    assert str(caught.value).startswith(f"f.yaml: {fault}")


def test_numbers_stay_numbers() -> None:
    content = {"number": 2, "many": [1, 2.5], "nested": {"a": [1, 2]}, "flag": True}
    checked = validate(Numbers, content, "f.yaml")
    assert checked == Numbers(number=2.0, many=(1, 2.5), nested={"a": (1.0, 2.0)}, flag=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.yaml", "name: a\nitems:\n- kind: x\n- kind: y\n  numbers: [1,\n   b]\n"),
        (
            "f.json",
            '{"name": "a", "items": [\n{"kind": "x"},\n{"kind":\n"y", "numbers": [1,\n\n"b"]}]}',
        ),
    ],
)
def test_the_line_of_a_fault_is_named(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    content = read_yaml(path, "file") if name == "f.yaml" else read_json(path, "file")
    with pytest.raises(QuadranasError, match=r"items\.1\.numbers\.1: .* \(got 'b'\), line 6$"):
        validate(Outer, content, path)
