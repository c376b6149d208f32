"""The source of images in Parquet files, as the Hugging Face hub stores data sets.

Each row has the bytes of an image file, by themselves or in a struct with `bytes`, and a label:
the number of a class, whose names stand in the metadata, or its name. Rows are read by row groups,
of which each process keeps the last ones.

Format: https://huggingface.co/docs/datasets/image_load, https://parquet.apache.org/docs
"""

import io
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import IO, Any, ClassVar, final

import numpy as np
import numpy.typing as npt

from quadranas.data import source
from quadranas.data.image_files import ImageFiles
from quadranas.data.labels import label_values
from quadranas.data.names import Names, packed
from quadranas.data.shards import Shards, find_shards
from quadranas.errors import QuadranasError, some
from quadranas.extras import require_extra
from quadranas.files import require_readable

IMAGE_COLUMNS = ("image", "img", "picture", "photo")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label")
"""Usual names of the columns; of several candidates, the first that is named so is used."""

KEPT_BYTES = 256 * 2**20
"""Size of the row groups that a process keeps, besides the one that was read last."""

COLUMNS_HINT = (
    "Accepted: one column of images (bytes, or a struct with bytes) and one of labels (the number "
    f"or the name of the class), such as {IMAGE_COLUMNS[0]} and {LABEL_COLUMNS[0]}. Rename or add "
    "the column."
)


@final
@dataclass(frozen=True)
class Columns:
    """The columns of a Parquet file that are used.

    Args:
        class_names: the names of the classes, if the metadata contain them.
    """

    image: str
    label: str
    class_names: tuple[str, ...] | None


@final
class RowGroups:
    """The row groups of some files, read when they are needed; a copy opens files of its own."""

    def __init__(self, files: Sequence[Path], column: str) -> None:
        self.files, self.column = tuple(files), column
        self._reset()

    def _reset(self) -> None:
        self._opened: dict[int, tuple[Any, npt.NDArray[np.int64]]] = {}
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "column": self.column}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.files, self.column = state["files"], state["column"]
        self._reset()

    def value(self, file: int, row: int) -> bytes:
        """The bytes of an image.

        Raises:
            OSError: the file cannot be read.
            ValueError: the row contains none, or the file is damaged.
        """
        with self._lock:
            group, first = self._group(file, row)
        value = group[row - first].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            raise ValueError(f"row {row} of {self.files[file].name} has no bytes of an image")
        if len(content) > source.MAX_FILE_BYTES:
            raise ValueError(f"it has {len(content)} bytes; the limit is {source.MAX_FILE_BYTES}")
        return bytes(content)

    def size(self, file: int, row: int) -> tuple[int, int]:
        """Bytes and rows of the group that a row is in, from the metadata; errors as above."""
        with self._lock:
            parquet, _, number = self._place(file, row)
            group = parquet.metadata.row_group(number)
            columns = map(group.column, range(group.num_columns))
            sizes: list[int] = [
                column.total_compressed_size
                for column in columns
                if column.path_in_schema.split(".")[0] == self.column
            ]
            return sum(sizes), int(group.num_rows)

    def _place(self, file: int, row: int) -> tuple[Any, npt.NDArray[np.int64], int]:
        """The opened file, the first row of each of its groups, and the group of a row."""
        if file not in self._opened:
            parquet = _open(self.files[file])
            sizes = [
                parquet.metadata.row_group(g).num_rows
                for g in range(parquet.metadata.num_row_groups)
            ]
            self._opened[file] = parquet, np.cumsum([0, *sizes])
        parquet, starts = self._opened[file]
        return parquet, starts, int(np.searchsorted(starts, row, side="right")) - 1

    def _group(self, file: int, row: int) -> tuple[Any, int]:
        """The images of the row group that a row is in, and the first row of the group."""
        parquet, starts, number = self._place(file, row)
        key = file, number
        if key not in self._kept:
            read = parquet.read_row_group(number, columns=[self.column], use_threads=False)
            while self._kept and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
            self._kept[key] = read.column(0)
        self._kept.move_to_end(key)
        return self._kept[key], int(starts[number])


@final
@dataclass(frozen=True, eq=False)
class ParquetSource:
    """Images in the rows of Parquet files; see `quadranas.data.source.Source`.

    Args:
        prefixes: the beginning of the names of every file's images.
        ends: the number of rows in all files up to and including each, (number of files,).
    """

    kind: ClassVar[str] = "Parquet files"

    path: Path
    groups: RowGroups
    prefixes: tuple[str, ...]
    ends: npt.NDArray[np.int64]

    @cached_property
    def names(self) -> Names:
        """The file and the row of every image."""
        starts = [0, *self.ends.tolist()]
        return Names.of(
            (prefix, packed(map(str, range(stop - start))))
            for prefix, start, stop in zip(self.prefixes, starts, starts[1:], strict=False)
        )

    def open(self, number: int, whole: bool) -> IO[bytes]:
        """Read the row."""
        return io.BytesIO(self._content(number))

    def num_bytes(self, number: int) -> int:
        """Mean size of an image of the row group in bytes: the exact one would have to be read."""
        num_bytes, num_rows = self.groups.size(*self._row(number))
        return max(1, num_bytes // max(1, num_rows))

    @property
    def bytes_per_read(self) -> int:
        """Number of bytes that are read for one image, if its row group is not kept."""
        return self.groups.size(0, 0)[0]

    def digest(self, number: int, whole: bool) -> str:
        """Digest of the image."""
        return blake2b(self._content(number), digest_size=8).hexdigest()

    def _content(self, number: int) -> bytes:
        return self.groups.value(*self._row(number))

    def _row(self, number: int) -> tuple[int, int]:
        """The file that an image is in, and its row."""
        file = int(np.searchsorted(self.ends, number, side="right"))
        start = int(self.ends[file - 1]) if file else 0
        return file, number - start


def list_parquet(path: Path) -> Shards:
    """List a Parquet file, or the Parquet files in a folder.

    Raises:
        MissingExtraError: pyarrow is not installed.
        QuadranasError: a file is damaged.
        OSError: a file cannot be read.
    """
    require_extra("parquet", "pyarrow")
    return Shards(path, find_shards(path, ".parquet"), partial(_list_rows, path))


def _open(file: Path) -> Any:
    """An opened Parquet file.

    Raises:
        QuadranasError: it is damaged, or ends early.
        OSError: it cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    require_readable(file, "Parquet file")
    try:
        return parquet.ParquetFile(file, pre_buffer=False)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> QuadranasError:
    """The error for a file that pyarrow refuses; damage is often an OSError without a number."""
    if isinstance(error, OSError) and error.errno is not None:
        return QuadranasError(f"cannot read {file}: {error.strerror}")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return QuadranasError(
        f"{file} is no Parquet file, is damaged, or ends early: {reason}", "Download it again."
    )


def _list_rows(path: Path, files: Sequence[Path], where: str) -> ImageFiles:
    """The rows of some files, in their order.

    Args:
        path: the folder or the one file.
        where: description of the data, for messages.
    """
    values: list[int | str] = []
    ends: list[int] = []
    columns = [_columns(_open(file).schema_arrow, file) for file in files]
    class_names = _require_alike(files, columns)
    for file, found in zip(files, columns, strict=True):
        values += _labels(file, found.label)
        ends.append(len(values))
    if not values:
        raise QuadranasError(f"{where} contains no rows", source.LAYOUT)
    prefixes = tuple(
        f"{file.relative_to(path).as_posix()}/" if path.is_dir() else "" for file in files
    )
    images = ParquetSource(path, RowGroups(files, columns[0].image), prefixes, np.array(ends))
    class_names, labels = label_values(values, class_names, where)
    return ImageFiles(images, np.arange(len(values)), labels, class_names)


def _require_alike(files: Sequence[Path], columns: Sequence[Columns]) -> tuple[str, ...] | None:
    """The names of the classes of all files; None if no file contains them.

    Raises:
        QuadranasError: files differ in the column of images, or in the names of the classes, so
            that one number would stand for two classes.
    """
    named = [pair for pair in zip(files, columns, strict=True) if pair[1].class_names is not None]
    for file, found in zip(files, columns, strict=True):
        if found.image != columns[0].image:
            raise QuadranasError(
                f"{file} has its images in the column {found.image!r}, {files[0]} in "
                f"{columns[0].image!r}",
                "Keep data sets with different columns in different folders.",
            )
        if found.class_names is not None and found.class_names != named[0][1].class_names:
            names = [some(part.class_names or ()) for part in (found, named[0][1])]
            raise QuadranasError(
                f"{file} has the classes {names[0]}, {named[0][0]} {names[1]}, in this order",
                "Keep data sets with different classes in different folders.",
            )
    return named[0][1].class_names if named else None


def _columns(schema: Any, file: Path) -> Columns:
    """The columns of images and of labels.

    Raises:
        QuadranasError: there is none, or it is unclear which; lists the columns.
    """
    from pyarrow import types

    features = _features(schema)
    kinds = {name: feature.get("_type") for name, feature in features.items()}

    def has_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(
                kind.field(i).name == "bytes" and has_bytes(kind.field(i).type)
                for i in range(kind.num_fields)
            )
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    images = [name for name in schema.names if has_bytes(schema.field(name).type)]
    declared = [name for name in images if kinds.get(name) == "Image"]
    image = _one(declared or images, IMAGE_COLUMNS, "image", schema, file)
    known = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    usual = [name for name in schema.names if name.lower() in LABEL_COLUMNS]
    label = _one(known or usual, LABEL_COLUMNS, "label", schema, file)
    names = features.get(label, {}).get("names")
    are_known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return Columns(image, label, tuple(names) if names and are_known else None)


def _one(
    candidates: Sequence[str], usual: Sequence[str], what: str, schema: Any, file: Path
) -> str:
    """The only candidate, or the first one with a usual name; errors as in `_columns`."""
    named = [name for word in usual for name in candidates if name.lower() == word]
    if len(candidates) == 1 or named:
        return (named or list(candidates))[0]
    listed = ", ".join(f"{column.name} ({column.type})" for column in schema)
    if not candidates:
        raise QuadranasError(f"{file} has no {what} column; columns: {listed}", COLUMNS_HINT)
    raise QuadranasError(
        f"{file} has several {what} columns: {', '.join(candidates)}; columns: {listed}",
        COLUMNS_HINT,
    )


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What the hub's metadata say about the columns; empty without them."""
    content: Any = None
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        content = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    if not isinstance(content, dict):
        return {}
    return {name: part for name, part in content.items() if isinstance(part, dict)}


def _labels(file: Path, column: str) -> list[int | str]:
    """The labels of all rows.

    Raises:
        QuadranasError: they are neither numbers nor texts, or a row has none.
    """
    import pyarrow
    from pyarrow import types

    try:
        found = _open(file).read(columns=[column], use_threads=False).column(0)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise _damaged(file, error) from error
    kind = found.type.value_type if types.is_dictionary(found.type) else found.type
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        raise QuadranasError(
            f"{file} has labels of the type {found.type} in the column {column!r}; accepted: "
            "integers or texts",
            COLUMNS_HINT,
        )
    values: list[int | str | None] = found.to_pylist()
    if None in values:
        raise QuadranasError(
            f"row {values.index(None)} of {file} has no label in the column {column!r}",
            "Images without labels, as in the test split of a competition, cannot be used.",
        )
    return [value for value in values if value is not None]
