"""What the tests of search spaces share: a space file to be changed."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from quadranas.space.space_file import space_files
from tests.space.documents import WriteSpace


@pytest.fixture
def toy() -> dict[str, Any]:
    text = space_files()["toy"].read_text(encoding="utf-8")
    content: dict[str, Any] = copy.deepcopy(yaml.safe_load(text))
    # YAML's aliases are one object; a test changes one place.
    content["stages"] = [copy.deepcopy(stage) for stage in content["stages"]]
    return content


@pytest.fixture
def write_space(tmp_path: Path) -> WriteSpace:
    def write(content: dict[str, Any]) -> str:
        path = tmp_path / "space.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return str(path)

    return write
