"""Reading and writing files."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quadranas.errors import QuadranasError
from quadranas.files import (
    dump_yaml,
    file_name,
    parse_json,
    read_json,
    read_text,
    read_yaml,
    shipped,
    write_atomically,
    write_json,
)
from quadranas.validation import validate
from tests.documents import Outer


def test_shipped_data_is_found() -> None:
    assert (shipped("search_spaces") / "toy.yaml").is_file()
    assert (shipped("latency_tables") / "toy" / "vpu.json").is_file()


# ---------------------------------------------------------------- writing


def test_write_creates_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    write_json(path, {"x": [1, 2.5, "é", None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"x": [1, 2.5, "é", None]}
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["file.json"]  # noqa: PTH208
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "chmod"), (Path, "replace")])
def test_a_failing_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, step: str
) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(QuadranasError) as caught:
        write_atomically(path, "new")
    assert caught.value.message == f"cannot write {path}: No space left on device"
    assert caught.value.hint == "Free some space or choose another folder."
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_replaces_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new.json"
    write_json(path, {"a": 1}, replace=False)
    for _ in ("links", "no links"):
        with pytest.raises(QuadranasError, match=r"the output .*new.json exists already"):
            write_json(path, {"a": 2}, replace=False)
        monkeypatch.setattr(Path, "hardlink_to", lambda *_: os.link("nowhere", "nowhere"))
    write_json(tmp_path / "other.json", {"a": 3}, replace=False)
    assert read_json(path, "file") == {"a": 1}
    assert read_json(tmp_path / "other.json", "file") == {"a": 3}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    target = tmp_path / "file" / "below.json"
    with pytest.raises(QuadranasError, match=rf"cannot write {target}: (Not a dir|File exists)"):
        write_json(target, {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(QuadranasError, match=r"/folder: it is a folder, not a file"):
        write_json(tmp_path / "folder", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


# ---------------------------------------------------------------- reading


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    with pytest.raises(QuadranasError) as caught:
        read_yaml(missing, "search space")
    assert str(caught.value) == f"cannot read search space {missing}: No such file or directory"
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(QuadranasError, match=r"cannot read table .*binary.json: not UTF-8 text"):
        read_json(binary, "table")
    with pytest.raises(QuadranasError, match=r"cannot read device '.*x00.*': embedded null"):
        read_text(tmp_path / "a\0b", "device")


@pytest.mark.parametrize(
    ("text", "found"), [("[1, 2]", "list"), ("3", "int"), ("null", "NoneType"), ('"a"', "str")]
)
def test_a_document_that_is_no_mapping(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "file"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QuadranasError, match=f"{path}: expected an object, got {found}"):
        read_json(path, "file")
    with pytest.raises(QuadranasError, match=f"{path}: expected a mapping of keys, got {found}"):
        read_yaml(path, "file")


def test_yaml_executes_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "evil.yaml"
    path.write_text(f"a: !!python/object/apply:os.mkdir [{marker}]", encoding="utf-8")
    with pytest.raises(QuadranasError, match=r"evil.yaml: not valid YAML: could not determine"):
        read_yaml(path, "file")
    assert not marker.exists()


@pytest.mark.parametrize(
    "value",
    ["2001-99-99", '!!int ""', "!!bool x", "!!timestamp x", "[", "[" * 5000],
)
def test_what_pyyaml_cannot_construct(tmp_path: Path, value: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(f"a: {value}", encoding="utf-8")
    with pytest.raises(QuadranasError, match=r"file.yaml: not valid YAML: "):
        read_yaml(path, "file")


@pytest.mark.parametrize("text", ['{"a": ' + "[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": '])
def test_what_json_cannot_construct(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QuadranasError, match=r"file.json: not valid JSON: "):
        read_json(path, "file")


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    """What a call returns, or the error of ours that it raises; any other error is a failure."""
    try:
        return call(*args)
    except QuadranasError as error:
        return error


def test_merges_of_yaml_are_bounded(tmp_path: Path) -> None:
    levels = (f"l{n + 1}: &l{n + 1} {{<<: [{', '.join([f'*l{n}'] * 30)}]}}" for n in range(9))
    path = tmp_path / "file.yaml"
    path.write_text("\n".join(["l0: &l0 {k: 1}", *levels]), encoding="utf-8")
    with pytest.raises(QuadranasError, match="more than 10000 merged keys, line 4"):
        read_yaml(path, "file")
    many = "".join(f"k{n}: 1\n" for n in range(10_001))
    path.write_text(f"{many}m: {{<<: {{a: 1}}, b: 2}}\n", encoding="utf-8")
    assert read_yaml(path, "file")["m"] == {"a": 1, "b": 2}


YAML_CHARACTERS = "!&*{}[]:,-?|>#'\"%<~=_ \n\t0123456789.:+TZabcdefinorstuxy"
DOCUMENTS = st.one_of(
    st.text(),
    st.text(YAML_CHARACTERS, max_size=40),
    st.text(YAML_CHARACTERS, max_size=30).map("name: ".__add__),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ).map(json.dumps),
)


@given(text=DOCUMENTS)
@example("<<: 3")
@example("&a {k: *a}")
@example("? [a]\n: b")
def test_no_text_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("text") / "file"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (read_yaml, read_json):
        result = outcome(read, path, "file")
        if isinstance(result, QuadranasError):
            assert str(path) in str(result)
        else:
            assert isinstance(result, dict)
            checked = outcome(validate, Outer, result, "file")
            assert isinstance(checked, Outer) or str(checked).startswith("file: ")


@given(data=st.binary(max_size=30))
def test_no_bytes_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "file"
    path.write_bytes(data)
    for read in (read_yaml, read_json):
        result = outcome(read, path, "file")
        assert isinstance(result, dict) or str(path) in str(result)


# ---------------------------------------------------------------- strict parsing


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"scale": 1,\n"scale": 0.001}', "not valid JSON: duplicate key 'scale', line 2"),
        ('{"a": [{"b": 1},\n{"b": 2,\n"b": 3}]}', "not valid JSON: duplicate key 'b', line 3"),
        ('{"a": "{",\n"\\u0061": 2}', "not valid JSON: duplicate key 'a', line 2"),
        ('{"a": 1,\n"a": 2,}', "not valid JSON: "),
        ('{"a": {"b": [1,\nNaN]}}', "a.b.1: Input should be a finite number (got nan), line 2"),
        ('{"a":\n-Infinity}', "a: Input should be a finite number (got -inf), line 2"),
        ('{"b": 1e308, "a": 1e309}', "a: Input should be a finite number (got inf), line 1"),
    ],
)
def test_json_has_every_key_once_and_finite_numbers(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QuadranasError) as caught:
        read_json(path, "file")
    assert str(caught.value).startswith(f"{path}: {fault}")
    with pytest.raises(ValueError, match=r"duplicate key|finite number|Expecting|Illegal"):
        parse_json(text.encode())


SEVERAL_BASES = (
    "is read as base 8 or 60 by some readers, line 1; write the number in base 10, or a text in "
    "quotes"
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3", "not valid YAML: duplicate key 'a', line 3"),
        ("x: {a: 1,\n 'a': 2}", "not valid YAML: duplicate key 'a', line 2"),
        ("a: 1\ng:\n- b: .inf", "g.0.b: Input should be a finite number (got inf), line 3"),
        ("a: -.inf", "a: Input should be a finite number (got -inf), line 1"),
        ("a: &x [.nan, *x]", "a.0: Input should be a finite number (got nan), line 1"),
        ("a: 010", f"not valid YAML: 010 {SEVERAL_BASES}"),
        ("a: -1:30", f"not valid YAML: -1:30 {SEVERAL_BASES}"),
        ("a: 1e999", "a: Input should be a finite number (got inf), line 1"),
    ],
)
def test_yaml_has_every_key_once_and_finite_numbers(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QuadranasError) as caught:
        read_yaml(path, "file")
    assert str(caught.value) == f"{path}: {fault}"


def test_yaml_reads_back_what_was_written(tmp_path: Path) -> None:
    content = {"text": "1e5", "number": 1e-7, "other": "1.5", "name": "e3", "flag": "yes"}
    path = tmp_path / "file.yaml"
    path.write_text(dump_yaml(content), encoding="utf-8")
    assert read_yaml(path, "file") == content
    path.write_text("a: 1e-3\nb: -2E+4\nc: 1e3x\nd: e3\nbase: &m {x: 1}\nf: {<<: *m, x: 2}\n")
    assert read_yaml(path, "file") == {
        "a": 1e-3,
        "b": -2e4,
        "c": "1e3x",
        "d": "e3",
        "base": {"x": 1},
        "f": {"x": 2},
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a net-onnx-fp32", "a-net-onnx-fp32"),
        ("../../etc/x", "-..-etc-x"),
        ("/tmp/x", "-tmp-x"),
        ("Größe", "Größe"),
        ("a\0b\n", "a-b-"),
        ("..", "unnamed"),
    ],
)
def test_a_name_from_a_file_stays_in_its_folder(text: str, name: str) -> None:
    assert file_name(text) == name
    assert "/" not in name
