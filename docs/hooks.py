"""Hooks of MkDocs: documents outside docs/ become pages, and links between the two work.

A page that would load something from another host is a warning, which ends a strict build.
"""

import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = "docs/"
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?\)")
LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?https?://[^>]*>")
LOG = logging.getLogger("mkdocs.hooks")
IN_NAV = ("CHANGELOG.md", "CONTRIBUTING.md")


def outside() -> Iterator[Path]:
    """The documents outside docs/, and their images, relative to the repository."""
    yield from map(Path, IN_NAV)
    for pattern in ("experiments/*/README.md", "experiments/*/*.png"):
        yield from (path.relative_to(ROOT) for path in sorted(ROOT.glob(pattern)))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents outside docs/ under their paths in the repository."""
    for path in outside():
        listed = path.name in IN_NAV
        inclusion = InclusionLevel.INCLUDED if listed else InclusionLevel.NOT_IN_NAV
        source = str(ROOT / path)
        files.append(
            File.generated(config, path.as_posix(), abs_src_path=source, inclusion=inclusion)
        )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    uri = page.file.src_uri
    is_outside = Path(uri) in set(outside())
    folder = posixpath.dirname(uri if is_outside else DOCS + uri)

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        place = posixpath.relpath(target.removeprefix(DOCS), posixpath.dirname(uri) or ".")
        return f"{link[1]}{place}{link[3] or ''})"

    return LINK.sub(moved, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> None:
    """Warn of what a page would load from another host."""
    for element in LOADED.findall(output):
        LOG.warning("%s loads from another host: %s", page.file.src_uri, element)
