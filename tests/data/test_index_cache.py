"""Indexes of large data sets: used while nothing has changed, and never needed."""

import os
from pathlib import Path
from typing import Any

import pytest

from quadranas.data import folders, tar_members, tar_shards
from quadranas.data.image_files import ImageFiles
from quadranas.data.index_cache import CACHE_VARIABLE, Index, cache_folder, load_index, save_index
from quadranas.data.listing import find_splits
from tests.data.sources import as_shards
from tests.pictures import write_classes


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that keeps indexes of few images, even if they were changed a moment ago."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    for module in (folders, tar_shards):
        monkeypatch.setattr(module, "MIN_IMAGES", 1)
        monkeypatch.setattr(module, "SETTLED_NS", -(10**18))
    return tmp_path / "cache"


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders that are read."""
    read: list[str] = []

    def scan(place: str) -> Any:
        read.append(Path(place).name)
        return os.scandir(place)

    real = folders.scan_folder
    monkeypatch.setattr(folders, "scan_folder", lambda path, known: real(path, known, scan=scan))
    return read


def content(files: ImageFiles | None) -> Any:
    assert files is not None
    read = [files.digest(index, whole=True) for index in range(len(files))]
    return files.members, files.labels.tolist(), files.class_names, dict(files.left_out), read


def listed(path: Path) -> tuple[Any, Any]:
    train, test = find_splits(path, None)
    return content(train), content(test)


def pets(folder: Path) -> Path:
    write_classes(folder / "train", count=4)
    write_classes(folder / "test", count=3)
    (folder / "train" / "cat" / "notes.txt").write_text("")
    return folder


def test_a_folder_is_read_once(tmp_path: Path, cache: Path, scanned: list[str]) -> None:
    path = pets(tmp_path / "pets")
    first = listed(path)
    assert sorted(scanned) == ["cat", "cat", "dog", "dog", "pets", "test", "train"]
    (index,) = cache.iterdir()
    written = index.stat().st_mtime_ns
    scanned.clear()
    assert listed(path) == first
    assert scanned == []
    assert index.stat().st_mtime_ns == written


@pytest.mark.parametrize("change", ["add", "remove", "rename", "new class", "remove class"])
def test_a_change_is_noticed_and_only_its_folder_read(
    tmp_path: Path, cache: Path, scanned: list[str], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pets(tmp_path / "pets")
    listed(path)
    scanned.clear()
    cats = path / "train" / "cat"
    if change == "add":
        (cats / "new.png").write_bytes((cats / "000.png").read_bytes())
    elif change == "remove":
        (cats / "001.png").unlink()
    elif change == "rename":
        (cats / "001.png").rename(cats / "z.png")
    for split in ("train", "test"):
        if change == "new class":
            write_classes(path / split, ("emu",), count=2)
        elif change == "remove class":
            (path / split / "dog").rename(tmp_path / f"dog of {split}")
            write_classes(path / split, ("emu",), count=1)
    found = listed(path)
    assert set(scanned) == ({"cat"} if "class" not in change else {"train", "test", "emu"})
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert listed(path) == found
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    scanned.clear()
    assert listed(path) == found
    assert scanned == []


def test_a_folder_that_was_changed_a_moment_ago_is_read_again(
    tmp_path: Path, scanned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pets(tmp_path / "pets")
    long_ago = 10**9
    os.utime(path / "train" / "dog", (long_ago, long_ago))
    monkeypatch.setattr(folders, "SETTLED_NS", 2 * 10**9)
    first = listed(path)
    scanned.clear()
    assert listed(path) == first
    assert sorted(scanned) == ["cat", "cat", "dog", "pets", "test", "train"]


def test_a_folder_with_a_link_that_leads_nowhere_is_read_again(
    tmp_path: Path, scanned: list[str]
) -> None:
    path = pets(tmp_path / "pets")
    (path / "train" / "cat" / "later.png").symlink_to(tmp_path / "later.png")
    first, _ = listed(path)
    (tmp_path / "later.png").write_bytes((path / "train" / "dog" / "001.png").read_bytes())
    scanned.clear()
    second, _ = listed(path)
    assert scanned == ["cat"]
    assert len(second[0]) == len(first[0]) + 1


def test_small_data_are_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MIN_IMAGES", 15)
    listed(pets(tmp_path / "pets"))
    assert not cache.exists()


@pytest.mark.parametrize("place", ["", "a file/cache"])
def test_without_a_cache_the_data_are_listed_again(
    tmp_path: Path, scanned: list[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, place and str(tmp_path / place))
    path = pets(tmp_path / "pets")
    first = listed(path)
    scanned.clear()
    assert listed(path) == first
    assert len(scanned) == 7


def test_a_damaged_index_counts_as_none(tmp_path: Path, cache: Path, scanned: list[str]) -> None:
    path = pets(tmp_path / "pets")
    first = listed(path)
    (index,) = cache.iterdir()
    whole = index.read_bytes()
    for place in (3, 40, len(whole) // 2, len(whole) - 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        for content in (bytes(damaged), whole[:place]):
            index.write_bytes(content)
            scanned.clear()
            assert listed(path) == first
            assert len(scanned) == 7
            scanned.clear()
            assert listed(path) == first
            assert scanned == []


def test_the_cache_lies_where_the_system_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/quadranas")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/quadranas")


def test_an_index_belongs_to_one_place_and_kind(tmp_path: Path) -> None:
    save_index("folder", tmp_path / "a", Index({"x": [1, "\udcff"]}, {}))
    found = load_index("folder", tmp_path / "b" / ".." / "a")
    assert found is not None
    assert found.facts == {"x": [1, "\udcff"]}
    assert load_index("folder", tmp_path / "b") is None
    assert load_index("tar", tmp_path / "a") is None


# Tar shards


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The shards that are read."""
    read: list[Path] = []
    real = tar_members.members_of

    def members_of(path: Path, shard: int) -> Any:
        read.append(path)
        return real(path, shard)

    monkeypatch.setattr(tar_shards, "members_of", members_of)
    return read


def test_shards_are_read_once_until_one_changes(
    tmp_path: Path, unread: list[Path], cache: Path
) -> None:
    pictures = pets(tmp_path / "pets")
    (pictures / "train" / "cat" / "notes.txt").unlink()
    path = as_shards(pictures, tmp_path / "shards")
    first = listed(path)
    assert len(unread) == 3
    assert len(list(cache.iterdir())) == 2
    unread.clear()
    assert listed(path) == first
    assert unread == []
    write_classes(pictures / "test", ("emu",), count=1)
    write_classes(pictures / "train", ("emu",), count=2)
    as_shards(pictures, path)
    second = listed(path)
    assert second[0][2] == ("cat", "dog", "emu")
    assert len(unread) == 3
    (path / "classes.txt").write_text("a\nb\nc\n")
    assert listed(path)[0][2] == ("a", "b", "c")
