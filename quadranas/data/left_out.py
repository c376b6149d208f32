"""What a data folder contains besides the images in use: counted, so that no loss is silent."""

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

MAX_KINDS = 6
"""Number of extensions that a message names."""


@dataclass(frozen=True)
class LeftOut:
    """A file that is not used.

    Args:
        kind: its extension, with the dot; `image`, `link` or `special` otherwise.
        beside: whether it is an image that lies beside the class folders.
    """

    kind: str
    beside: bool = False

    @property
    def is_link(self) -> bool:
        """Whether it is a link that leads to no file or folder."""
        return self.kind == "link"


def left_out_entry(entry: "os.DirEntry[str]") -> LeftOut:
    """Why an entry of a folder is left out."""
    if entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
        return LeftOut("link")
    return LeftOut(extension_of(entry.name) if entry.is_file() else "special")


def left_out_zipped(info: zipfile.ZipInfo) -> LeftOut:
    """Why a member of a zip file is left out."""
    return LeftOut("link" if is_zipped_link(info) else extension_of(info.filename))


def is_zipped_link(info: zipfile.ZipInfo) -> bool:
    """Whether a member is a link, which a zip file does not follow."""
    return stat.S_ISLNK(info.external_attr >> 16)


def described(left_out: Mapping[LeftOut, int], prefix: str = "") -> str:
    """The numbers of files by kind, in words; empty without any."""
    counts = Counter(left_out)
    links = counts.pop(LeftOut("link"), 0)
    special = counts.pop(LeftOut("special"), 0)
    beside = counts.pop(LeftOut("image", beside=True), 0)
    parts = []
    if links:
        parts.append(f"{links} link{_s(links)} that lead{'s' if links == 1 else ''} nowhere")
    if beside:
        parts.append(f"{beside} image{_s(beside)} outside class folders")
    if special:
        parts.append(f"{special} that {'is' if special == 1 else 'are'} no regular files")
    if total := counts.total():
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0].kind))
        kinds = [f"{number} {key.kind or 'without one'}" for key, number in ordered]
        more = f" and {len(kinds) - MAX_KINDS} more kinds" if len(kinds) > MAX_KINDS else ""
        parts.append(
            f"{total} file{_s(total)} ignored for {'its' if total == 1 else 'their'} extension "
            f"({', '.join(kinds[:MAX_KINDS])}{more})"
        )
    return prefix + ", ".join(parts) if parts else ""


def extension_of(name: str) -> str:
    """The extension of a file name, with its dot, in lower case; may be empty."""
    return PurePath(name).suffix.lower()


def _s(number: int) -> str:
    return "" if number == 1 else "s"
