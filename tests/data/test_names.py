"""Names in little memory: restored unchanged, whatever they contain."""

import os
import zipfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from quadranas.data.listing import find_splits
from quadranas.data.names import Names, packed, unpacked
from tests.pictures import noise, write_classes

NAMES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))


@given(st.lists(st.tuples(st.sampled_from(("", "a/", "b/c/", "é/")), NAMES)))
def test_names_are_those_that_were_packed(groups: list[tuple[str, list[str]]]) -> None:
    names = Names.of((folder, packed(part)) for folder, part in groups)
    expected = [f"{folder}{name}" for folder, part in groups for name in part]
    assert list(names) == expected
    assert len(names) == len(expected)
    assert [names[index] for index in reversed(range(len(names)))] == expected[::-1]


def test_bytes_that_are_not_utf8_are_restored() -> None:
    name = os.fsdecode(b"\xff\x80.png")
    assert unpacked(packed([name, "b"])) == [name, "b"]
    assert Names.of([("x/", packed([name]))])[0] == f"x/{name}"


def test_an_archive_may_spell_one_folder_in_two_ways(tmp_path: Path) -> None:
    pictures = write_classes(tmp_path / "a", count=3)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for index, path in enumerate(sorted(pictures.glob("*/*"))):
            name = path.relative_to(pictures).as_posix()
            archive.writestr(f"./{name}" if index % 2 else name, path.read_bytes())
    files, _ = find_splits(tmp_path / "a.zip", None)
    assert files.members == (
        *("./cat/001.png", "cat/000.png", "cat/002.png"),
        *("./dog/000.png", "./dog/002.png", "dog/001.png"),
    )
    assert (files.read(0, 16) == noise(1, 16, 16, 3)).all()
    assert (files.read(5, 16) == noise(1001, 16, 16, 3)).all()
