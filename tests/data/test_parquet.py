"""Parquet files: columns, labels, splits, and what is said about bad input."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from quadranas.data.dataset import load_dataset
from quadranas.data.decoding import CorruptImageError
from quadranas.data.image_files import ImageFiles
from quadranas.data.listing import find_splits
from quadranas.data.parquet import KEPT_BYTES, ParquetSource
from quadranas.errors import MissingExtraError, QuadranasError
from tests.data.sources import write_parquet
from tests.pictures import noise

pyarrow: Any = pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(seed, 24, 24, 3)).save(file, "PNG")
    return file.getvalue()


def images(count: int) -> list[dict[str, Any]]:
    """Images as the hub stores them."""
    return [{"bytes": png(number), "path": None} for number in range(count)]


def table(path: Path, labels: list[Any], **columns: Any) -> Path:
    return write_parquet(path, {"image": images(len(labels)), "label": labels, **columns})


def listed(path: Path) -> ImageFiles:
    files, test = find_splits(path, None)
    assert test is None
    return files


# Columns and labels


def test_metadata_name_the_classes(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", {"image": images(3), "label": [2, 0, 2]}, ["emu", "cat", "dog"]
    )
    files = listed(path)
    assert files.class_names == ("emu", "cat", "dog")
    assert files.labels.tolist() == [2, 0, 2]
    assert files.members == ("0", "1", "2")


@pytest.mark.parametrize(
    "features", [[1], "image", None, {"image": 3, "label": {"_type": [1], "names": {"a": 1}}}]
)
def test_metadata_of_another_form_are_ignored(tmp_path: Path, features: Any) -> None:
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = pyarrow.table({"image": images(3), "label": [2, 0, 2]})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(columns.replace_schema_metadata(metadata), path)
    assert listed(path).class_names == ("0", "2")


def test_metadata_of_some_files_name_the_classes_of_all(tmp_path: Path) -> None:
    columns = {"image": images(2), "label": [1, 0]}
    write_parquet(tmp_path / "0.parquet", columns)
    write_parquet(tmp_path / "1.parquet", columns, ["emu", "cat"])
    files = listed(tmp_path)
    assert files.class_names == ("emu", "cat")
    assert files.labels.tolist() == [1, 0, 1, 0]


def test_classes_of_the_splits_are_matched_by_name(tmp_path: Path) -> None:
    columns = {"image": images(4), "label": [0, 0, 1, 1]}
    write_parquet(tmp_path / "train-0.parquet", columns, ["emu", "cat"])
    write_parquet(tmp_path / "test-0.parquet", columns, ["cat", "emu"])
    data = load_dataset(tmp_path, resolution=16)
    assert data.class_names == ("emu", "cat")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.test.labels.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([7, 10, 7], ("7", "10"), [0, 1, 0]),
        (["dog", "cat", "dog"], ("cat", "dog"), [1, 0, 1]),
    ],
)
def test_without_metadata_the_values_are_the_classes(
    tmp_path: Path, labels: list[Any], names: tuple[str, ...], expected: list[int]
) -> None:
    files = listed(table(tmp_path / "a.parquet", labels))
    assert files.class_names == names
    assert files.labels.tolist() == expected


def test_a_dictionary_of_texts_is_a_label(tmp_path: Path) -> None:
    labels = pyarrow.array(["dog", "cat", "dog"]).dictionary_encode()
    path = write_parquet(tmp_path / "a.parquet", {"image": images(3), "label": labels})
    assert listed(path).labels.tolist() == [1, 0, 1]


def test_columns_of_bytes_and_other_names_are_found(tmp_path: Path) -> None:
    columns = {"id": [1, 2], "picture": [png(0), png(1)], "mask": [b"", b""], "Class": ["b", "a"]}
    files = listed(write_parquet(tmp_path / "a.parquet", columns))
    assert files.labels.tolist() == [1, 0]
    assert files.size(1) == (24, 24)


def test_the_usual_label_goes_before_others(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", [1, 0], fine_label=[8, 9], category=["x", "y"])
    assert listed(path).class_names == ("0", "1")


def test_every_row_of_many_groups_is_read_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"image": images(23), "label": [0, 1] * 11 + [0]})
    monkeypatch.setattr("quadranas.data.parquet.KEPT_BYTES", 3 * 5 * len(png(0)))
    files = listed(path)
    for index in (22, 0, 4, 5, 21, 9, 0, 14):
        with files.source.open(index, True) as file:
            assert file.read() == png(index)
    source = files.source
    assert isinstance(source, ParquetSource)
    assert 1 < len(source.groups._kept) <= 4
    assert KEPT_BYTES > 2**20


def test_splits_of_the_hub(tmp_path: Path) -> None:
    table(tmp_path / "data" / "train-00000-of-00002.parquet", [0, 1, 1])
    table(tmp_path / "data" / "train-00001-of-00002.parquet", [0])
    table(tmp_path / "data" / "validation-00000-of-00001.parquet", [0, 1])
    (tmp_path / "README.md").write_text("pets")
    train, test = find_splits(tmp_path, None)
    assert test is not None
    assert (len(train), len(test)) == (4, 2)
    assert train.member(3) == "data/train-00001-of-00002.parquet/0"
    first, second = find_splits(
        tmp_path / "data/train-00000-of-00002.parquet",
        tmp_path / "data/validation-00000-of-00001.parquet",
    )
    assert (len(first), len(second or ())) == (3, 2)


# Bad input: each is one message that names the thing


def no_image(path: Path) -> Path:
    return write_parquet(path, {"text": ["a", "b"], "label": [0, 1]})


def no_label(path: Path) -> Path:
    return write_parquet(path, {"image": images(2), "caption": ["a", "b"]})


def two_image_columns(path: Path) -> Path:
    return write_parquet(path, {"a": images(2), "b": images(2), "label": [0, 1]})


def ends_early(path: Path) -> Path:
    content = table(path, [0, 1, 0]).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def text(path: Path) -> Path:
    path.write_text("<html>404</html>")
    return path


def floats(path: Path) -> Path:
    return table(path, [0.5, 1.5])


def missing_label(path: Path) -> Path:
    return table(path, [0, None, 1])


def unlabelled(path: Path) -> Path:
    return table(path, [-1, -1])


def beyond_the_names(path: Path) -> Path:
    return write_parquet(path, {"image": images(2), "label": [0, 5]}, ["cat", "dog"])


def no_rows(path: Path) -> Path:
    kind = pyarrow.struct([("bytes", pyarrow.binary())])
    empty = {"image": pyarrow.array([], kind), "label": pyarrow.array([], pyarrow.int64())}
    return write_parquet(path, empty)


def other_columns(path: Path) -> Path:
    table(path.parent / "b" / "0.parquet", [0, 1])
    write_parquet(path.parent / "b" / "1.parquet", {"img": images(2), "label": [0, 1]})
    return path.parent / "b"


def other_order_of_classes(path: Path) -> Path:
    columns = {"image": images(2), "label": [0, 1]}
    for number, names in enumerate((["cat", "dog"], None, ["dog", "cat"])):
        write_parquet(path.parent / "b" / f"{number}.parquet", columns, names)
    return path.parent / "b"


BAD_INPUTS = [
    (
        no_image,
        r"a\.parquet has no image column; columns: text \(string\), label \(int64\)",
        "Rename",
    ),
    (no_label, r"a\.parquet has no label column; columns: image \(struct<.*caption", "Rename"),
    (two_image_columns, r"several image columns: a, b; columns: a \(struct<", "Rename"),
    (ends_early, r"a\.parquet is no Parquet file, is damaged, or ends early: ", "Download"),
    (text, r"a\.parquet is no Parquet file, is damaged, or ends early: ", "Download"),
    (floats, r"has labels of the type double in the column 'label'; accepted: int", "Rename"),
    (missing_label, r"row 1 of .*a\.parquet has no label in the column 'label'", "competition"),
    (unlabelled, r"labels without a class: -1; accepted: 0 and above", "without labels"),
    (beyond_the_names, r"labels without a class: 5; accepted: 0 to 1", "without labels"),
    (no_rows, r"--data .*a\.parquet contains no rows", "Accepted"),
    (other_columns, r"1\.parquet has its images in the column 'img', .* in 'image'", "folders"),
    (
        other_order_of_classes,
        r"2\.parquet has the classes dog, cat, .*0\.parquet cat, dog, in this order",
        "folders",
    ),
]


@pytest.mark.parametrize(
    ("write", "message", "hint"), BAD_INPUTS, ids=[write.__name__ for write, _, _ in BAD_INPUTS]
)
def test_bad_input_is_refused_in_one_message(
    tmp_path: Path, write: Callable[[Path], Path], message: str, hint: str
) -> None:
    with pytest.raises(QuadranasError, match=message) as caught:
        find_splits(write(tmp_path / "a.parquet"), None)
    assert hint in caught.value.hint


def test_a_row_without_bytes_is_a_corrupt_image(tmp_path: Path) -> None:
    rows = images(8)
    rows[5] = {"bytes": None, "path": "elsewhere.png"}
    path = write_parquet(tmp_path / "a.parquet", {"image": rows, "label": [0, 1] * 4})
    with pytest.raises(
        CorruptImageError, match=r"corrupt image 5 in .*row 5 of a\.parquet has no"
    ):
        load_dataset(path, resolution=16)
    assert load_dataset(path, resolution=16, skip_corrupt=True).num_skipped == 1


def test_damaged_pages_are_named(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a.parquet",
        {"label": [0, 1] * 4, "image": images(8)},
        use_dictionary=False,
        row_group_size=2,
        compression="none",
        write_statistics=False,
    )
    for number, said in ((2, "images cannot be used:\n  corrupt image 2 in "), (0, "is damaged")):
        content = bytearray(path.read_bytes())
        start = content.find(png(number)) - 4 if number else 4  # a length, or the first page
        content[start : start + 4] = b"\xff" * 4
        path.write_bytes(content)
        with pytest.raises(QuadranasError, match=said):
            load_dataset(path, resolution=16)


def test_slow_reading_of_large_data_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "a.parquet", [0, 1] * 6)
    assert load_dataset(path, resolution=16).warnings == ()
    monkeypatch.setattr("quadranas.data.dataset.MEMORY_LIMIT_BYTES", 100)
    data = load_dataset(path, resolution=16)
    (warning,) = data.warnings
    assert data.files is not None
    assert isinstance(data.files.train.source, ParquetSource)
    read_mb = data.files.train.source.bytes_per_read / 1e6
    assert 0.9 < read_mb * 1e6 / (5 * len(png(0))) < 1.6  # five rows and page headers
    assert "do not fit in memory, and Parquet files are read slowly" in warning
    assert f"about {read_mb:.2g} MB for each image; tar shards are faster" in warning


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "a.parquet", [0, 1])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="'parquet' needs the package 'pyarrow'") as caught:
        find_splits(path, None)
    assert "pip install 'quadranas[parquet]'" in caught.value.hint
