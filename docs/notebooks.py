"""Write tutorials as notebooks, beside their pages, and execute them.

    python docs/notebooks.py FOLDER

The notebooks beside the pages have no outputs, so that they change with the pages only. Those in
FOLDER are executed; a cell that fails ends this script with its traceback.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parent / "tutorials"
PAGES = ("backbone", "adapt")
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def notebook(page: Path) -> Any:
    """A page as a notebook: its Python blocks are cells."""
    found = jupytext.read(page, fmt="md")
    for number, cell in enumerate(found.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    found.metadata = {"kernelspec": KERNEL}
    return found


def main(folder: Path) -> None:
    """Write the notebooks beside their pages, and the executed ones to `folder`."""
    for name in PAGES:
        found = notebook(TUTORIALS / f"{name}.md")
        nbformat.write(found, TUTORIALS / f"{name}.ipynb")
        with TemporaryDirectory() as empty:
            NotebookClient(found, resources={"metadata": {"path": empty}}).execute()
        nbformat.write(found, folder / f"{name}.ipynb")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
