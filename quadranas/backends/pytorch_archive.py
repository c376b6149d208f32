"""Checking archives of `torch.export` (.pt2) before PyTorch reads them, which can run code.

PyTorch 2.13 unpickles weights, constants and examples, compiles guards and names into Python,
evaluates expressions of sizes and calls whatever function a node names
(`torch.export.pt2_archive`, `torch._export.serde.serialize`). So an archive may contain only what
this package writes: raw tensors, and a graph of ATen operators whose strings are names.
"""

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quadranas.errors import QuadranasError
from quadranas.files import parse_json

GRAPH = "models/model.json"
EXAMPLES = "data/sample_inputs/model.pt"
RECORDS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id|alignment)"
)
TARGET = re.compile(
    r"torch\.ops\.aten\.(?!from_file\.)\w+\.\w+"  # from_file opens any file
    r"|_operator\.(getitem|add|sub|mul|floordiv|mod|neg|eq|ne|ge|gt|le|lt)",
    re.ASCII,
)
NAME = re.compile(r"[\w.]*", re.ASCII)
SIZE = re.compile(
    r"(Symbol|Integer|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|positive|integer|True"
    r"|'[su]\d+'|-?\d+|[(),= ])*",
    re.ASCII,
)
ARGUMENTS = {
    *("as_none", "as_tensor", "as_tensors", "as_optional_tensor", "as_optional_tensors"),
    *("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string"),
    *("as_name", "as_expr", "as_sym_int", "as_sym_ints", "as_scalar_type", "as_device"),
    *("as_memory_format", "as_layout"),
}
CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
UNREAD = ("nn_module_stack", "torch_version")
"""Strings that PyTorch does not evaluate."""


def read_archive(path: Path) -> bytes:
    """The content of an archive that is safe to give to `torch.export.load`.

    Raises:
        QuadranasError: it cannot be read, is damaged, or contains something that could run code.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise QuadranasError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            fault = next(_faults(archive), "")
            if not fault:
                _targets(archive)
    except (
        *(zipfile.BadZipFile, ValueError, LookupError, TypeError, AttributeError),
        RecursionError,
    ) as error:
        raise QuadranasError(
            f"{path} is not an archive of torch.export, or it is damaged: {error}",
            "Convert the network again.",
        ) from error
    if fault:
        raise QuadranasError(
            f"{path} contains {fault}, which quadranas neither writes nor reads",
            "PyTorch would run code from such a file; convert the network again.",
        )
    return content


def count_targets(path: Path) -> dict[str, int]:
    """Number of nodes of each operator, such as `aten.conv2d`, in an archive's graph.

    Raises:
        QuadranasError: as for `read_archive`.
    """
    with zipfile.ZipFile(io.BytesIO(read_archive(path))) as archive:
        return dict(Counter(_targets(archive)).most_common())


def _targets(archive: zipfile.ZipFile) -> list[str]:
    """The operator of every node in an archive's graph; errors of any kind if it is damaged."""
    graph = parse_json(archive.read(f"{_root(archive)}/{GRAPH}"))["graph_module"]["graph"]
    names = (node["target"].removeprefix("torch.ops.") for node in graph["nodes"])
    return [name.removesuffix(".default") for name in names]


def _root(archive: zipfile.ZipFile) -> str:
    return archive.namelist()[0].partition("/")[0]


def _faults(archive: zipfile.ZipFile) -> Iterator[str]:
    """The parts of an archive that are not allowed."""
    names = archive.namelist()
    if len(set(names)) != len(names):
        yield "two records of one name"
    if damaged := archive.testzip():
        raise zipfile.BadZipFile(f"{damaged} fails its check sum")
    root = f"{_root(archive)}/"
    for name in names:
        if not name.startswith(root) or not RECORDS.fullmatch(name.removeprefix(root)):
            yield f"the record {name!r}"
    if archive.getinfo(root + EXAMPLES).file_size:
        yield "pickled examples"
    for kind in ("weights", "constants"):
        config = parse_json(archive.read(f"{root}data/{kind}/model_{kind}_config.json"))
        for key, value in config["config"].items():
            if value["use_pickle"] is not False:
                yield f"the pickle {key!r}"
    yield from _graph_faults(parse_json(archive.read(root + GRAPH)))


def _graph_faults(content: Any, key: str = "") -> Iterator[str]:
    """The parts of a graph's description that are not allowed."""
    if isinstance(content, dict):
        if "inputs" in content and "target" in content:
            yield from _mismatch(TARGET, content["target"], "the function")
        for inner, value in content.items():
            yield from _mismatch(NAME, inner, "the key")
            yield from _field_faults(inner, value)
    elif isinstance(content, list):
        for value in content:
            yield from _graph_faults(value, key)
    elif isinstance(content, str):
        yield from _mismatch(SIZE if key == "expr_str" else NAME, content, "the text")


def _field_faults(name: str, value: Any) -> Iterator[str]:
    if name.startswith("as_") and name not in ARGUMENTS:
        yield f"the argument {name!r}"
    elif name == "metadata" and not set(value) <= {"nn_module_stack"}:
        yield "metadata about the origin of nodes"
    elif name in ("guards_code", "treespec_namedtuple_fields") and value:
        yield f"{name} {value!r}"
    elif name in ("in_spec", "out_spec"):
        yield from _container_faults(parse_json(value)[1])
    elif name not in UNREAD:
        yield from _graph_faults(value, name)


def _container_faults(spec: Any) -> Iterator[str]:
    """Types in a description of arguments other than Python's containers."""
    if spec["type"] not in CONTAINERS:
        yield f"the type {spec['type']!r}"
    for inner in spec["children_spec"]:
        yield from _container_faults(inner)


def _mismatch(pattern: re.Pattern[str], text: Any, what: str) -> Iterator[str]:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        yield f"{what} {text!r}"
