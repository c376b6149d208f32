"""Gate scores in files."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from quadranas.errors import QuadranasError
from quadranas.space.space_file import load_space
from quadranas.strategies.scores import load_scores
from tests.strategies.made_up import equal_scores


def test_scores_survive_a_file(tmp_path: Path) -> None:
    space = load_space("toy")
    scores = equal_scores(space)
    scores.save(tmp_path / "gates.json")
    assert load_scores(tmp_path / "gates.json", space) == scores
    with pytest.raises(QuadranasError, match="is for space 'toy', not for 'quadranet-mobile'"):
        load_scores(tmp_path / "gates.json", load_space("quadranet-mobile"))


@pytest.mark.parametrize(
    "fault",
    [
        {"stage1_block1": None},
        {"stage9_block1": {"slots": [[0.0]]}},
        {"stage1_block1": {"slots": [[0.0, 0.0]]}},
        {"stage1_block1": {"slots": [[0.0, 0.0], [0.0]]}},
        {"stage1_block1": {"slots": [[math.nan, 0.0], [0.0, 0.0]]}},
        {"stage1_block1": {"keep": -math.inf, "slots": [[0.0, 0.0], [0.0, 0.0]]}},
        {"stage1_block2": {"slots": [[0.0, 0.0], [0.0, 0.0]]}},
        {"stage1_block2": {"skip": -1e308, "slots": [[0.0, 0.0], [0.0, 0.0]]}},
        {"stage1_block1": {"slots": [[1e308, 1e308], [1e308, 1e308]]}},
        {"stage1_block1": {"slots": [[True, 0.0], [0.0, 0.0]]}},
    ],
)
def test_scores_that_do_not_fit_their_space_are_refused(
    tmp_path: Path, fault: dict[str, Any]
) -> None:
    space = load_space("toy")
    content = equal_scores(space).model_dump(mode="json")
    blocks = content["blocks"] | fault
    content["blocks"] = {name: block for name, block in blocks.items() if block is not None}
    path = tmp_path / "gates.json"
    path.write_text(json.dumps(content))
    with pytest.raises(QuadranasError, match=rf"gates\.json: blocks\.{next(iter(fault))}[:.]"):
        load_scores(path, space)
