"""Where a latency table is looked for, and in which order."""

from pathlib import Path

import pytest

from quadranas.errors import MissingEntryError, QuadranasError
from quadranas.files import shipped
from quadranas.latency.table_files import (
    find_priced,
    find_table,
    load_table,
    locate_table,
    table_paths,
)
from quadranas.space.space_file import load_space

SHIPPED = shipped("latency_tables") / "toy" / "vpu.json"


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_file_named_comes_first_then_the_copy_then_the_working_folder() -> None:
    table = load_table(SHIPPED)
    named, own, usual = Path("named.json"), Path("table.json"), table_paths("toy", "vpu")[0]
    assert locate_table("toy", "vpu", own=own) == SHIPPED
    table.save(usual)
    assert locate_table("toy", "vpu", own=own) == usual
    table.save(own)
    assert locate_table("toy", "vpu", own=own) == own
    assert locate_table("toy", "vpu") == usual
    assert locate_table("toy", "vpu", named, own=own) is None
    table.save(named)
    assert locate_table("toy", "vpu", named, own=own) == named


def test_a_copy_of_another_device_s_table_is_passed_over() -> None:
    own = Path("table.json")
    load_table(SHIPPED.with_name("cpu.json")).save(own)
    assert locate_table("toy", "vpu", own=own) == SHIPPED
    assert locate_table("toy", "cpu", own=own) == own


def test_without_a_space_there_is_no_default_place() -> None:
    assert locate_table("", "vpu") is None


def test_an_incomplete_copy_names_the_command_that_completes_it() -> None:
    table, own = load_table(SHIPPED), Path("a table.json")
    table.model_copy(update={"entries": table.entries[1:]}).save(own)
    with pytest.raises(MissingEntryError) as caught:
        find_priced(load_space("toy"), "vpu", own=own)
    assert "--output 'a table.json'" in caught.value.hint


def test_the_file_comes_with_the_table() -> None:
    priced = find_priced(load_space("toy"), "vpu")
    assert (priced.path, priced.table) == (SHIPPED, find_table(load_space("toy"), "vpu"))


def test_a_missing_file_names_the_command_that_makes_it() -> None:
    with pytest.raises(QuadranasError, match=r"looked at mine\.json") as caught:
        find_priced(load_space("toy"), "vpu", Path("mine.json"))
    assert caught.value.hint == (
        "Make it with: quadranas build-lut --device vpu --space toy --output mine.json"
    )
