"""Inspecting shared libraries of TVM without loading them: they may be for other machines.

The format is ELF (System V ABI, "Object Files").
"""

import re
import struct
from collections import Counter
from pathlib import Path

from quadranas.errors import QuadranasError

MACHINES = {62: "x86_64", 183: "aarch64"}
"""Names of ELF's instruction sets by their numbers."""

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
IDENTITY = b"\x7fELF"
WIDE = b"\x7fELF\x02\x01"
"""64 bits, little-endian: the only kind whose header is parsed."""

PROGRAM = b"\0__tvm_ffi__library_bin\0"
"""Symbol of the network around the kernels, weights included."""

ENTRY = "main"
"""A second name of a single kernel."""

KERNEL = re.compile(rb"\0__tvm_ffi_([A-Za-z]\w*)(?=\0)")


def check_library(path: Path, machine: str) -> bytes:
    """The content of a library for an instruction set.

    Raises:
        QuadranasError: it cannot be read, is damaged, not from TVM, or for another machine.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise QuadranasError(f"cannot read {path}: {error.strerror or error}") from error
    if not content.startswith(IDENTITY) or not _is_whole(content) or PROGRAM not in content:
        raise QuadranasError(
            f"{path} is not a library that TVM wrote, or it is damaged",
            "Convert the network again.",
        )
    found = MACHINES.get(HEADER.unpack_from(content)[2]) if content.startswith(WIDE) else None
    if found is not None and machine not in ("", found):
        raise QuadranasError(
            f"{path} is for {found}, the device's target is {machine}",
            "Name the device that it was converted for, or convert the network again.",
        )
    return content


def count_kernels(path: Path) -> dict[str, int]:
    """Number of kernels of each kind in a library; TVM numbers kernels that share a name.

    Raises:
        QuadranasError: as for `check_library`.
    """
    names = {name.decode() for name in KERNEL.findall(check_library(path, ""))} - {ENTRY}
    kinds = sorted(re.sub(r"\d+(?=_|$)", "", name) for name in names)
    return dict(Counter(kinds).most_common())


def _is_whole(content: bytes) -> bool:
    """Whether the file holds its table of sections, which is at the end."""
    if len(content) < HEADER.size:
        return False
    if not content.startswith(WIDE):
        return True
    fields = HEADER.unpack_from(content)
    offset, size, count = fields[6], fields[11], fields[12]
    return bool(offset > 0 and offset + size * count <= len(content))
