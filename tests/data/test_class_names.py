"""Names of classes: what cannot be a label is refused before anything is read."""

import os
from pathlib import Path

import pytest

from quadranas.commands.data import describe_data
from quadranas.data.dataset import load_dataset
from quadranas.errors import QuadranasError
from tests.pictures import write_classes, write_zip


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        (os.fsdecode(b"\xff"), r"\udcff"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x85", r"\x85"),
        ("a\u2028b", r"a\u2028b"),
        ("delete\x7f", r"delete\x7f"),
    ],
)
def test_a_name_that_cannot_be_a_label_is_refused(tmp_path: Path, name: str, shown: str) -> None:
    root = write_classes(tmp_path / "a", classes=("cat", name))
    with pytest.raises(QuadranasError) as caught:
        load_dataset(root, resolution=16)
    assert f"class folder '{shown}' of --data {root} has a name" in caught.value.message
    assert "Rename the folder" in caught.value.hint


@pytest.mark.parametrize("name", ["café", "子猫", "a b", ":smile:", "[red]", "👩\u200d🔬"])
@pytest.mark.parametrize("packed", [False, True])
def test_any_other_name_is_a_label(tmp_path: Path, name: str, packed: bool) -> None:
    root = write_classes(tmp_path / "a", classes=("cat", name))
    path = write_zip(tmp_path / "a.zip", root) if packed else root
    assert name in load_dataset(path, resolution=16).class_names


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (("Cat", "cat", "dog"), "'Cat', 'cat'"),
        (("hot dog", "hot_dog", "hotdog"), "'hot dog', 'hot_dog'"),
        (("caf\u00e9", "cafe\u0301", "cafe"), "'cafe\u0301', 'caf\u00e9'"),
        (("cat", "cats", "dog"), None),
    ],
)
def test_names_that_are_probably_one_are_warned_of(
    tmp_path: Path, names: tuple[str, ...], alike: str | None
) -> None:
    root = write_classes(tmp_path / "a", classes=names)
    text = f"the classes {alike} have nearly the same name; if they are one, "
    expected = [text + "put their images into one folder"] if alike else []
    assert [w for w in load_dataset(root, resolution=16).warnings if "name" in w] == expected
    found = describe_data(root, output=tmp_path / "page.html")
    assert [w for w in found.warnings if "name" in w] == expected


def test_a_folder_that_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    root = write_classes(tmp_path / name)
    with pytest.raises(QuadranasError, match=r"--data '.*caf\\udce9' is not UTF-8"):
        load_dataset(root, resolution=16)
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(QuadranasError, match=r"--data '.*caf\\udce9' is not UTF-8"):
        load_dataset(tmp_path / "link", resolution=16)
