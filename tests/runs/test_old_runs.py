"""Run folders that version 0.1.0 wrote still open, derive, resume, train and report.

`tests/golden/0.1.0` was written by version 0.1.0, as its README says, by the commands

    quadranas search --device vpu --budget 1ms --space toy --config small.yaml --output run
    quadranas derive run --device cpu --budget 0.9ms --output derived
    quadranas train derived --epochs 1 --output trained

with batches of 64 and one epoch of warm-up, two of search and one of fine-tuning. Checkpoints,
TensorBoard's events and inherited weights are left out.
"""

import shutil
from pathlib import Path

import pytest
import torch

import quadranas
from quadranas.latency.table_files import load_table
from quadranas.runs.config import merged
from quadranas.runs.config_file import read_config_file, recorded_command
from quadranas.space.architecture import load_architecture
from tests.command_line import call

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of the folders, in the working folder."""
    shutil.copytree(GOLDEN, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize(
    ("name", "kind", "command"),
    [
        ("run", "SearchResult", "search"),
        ("derived", "DeriveResult", "search"),
        ("trained", "TrainResult", "train"),
    ],
)
@pytest.mark.usefixtures("old")
def test_an_old_run_opens(name: str, kind: str, command: str) -> None:
    """Its config.yaml names no command: derive wrote the configuration of a search."""
    assert recorded_command(Path(name)) == command
    result = quadranas.open_run(name)
    assert type(result) is getattr(quadranas, kind)
    assert result.run == Path(name)
    with torch.no_grad():
        assert result.network().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert call("report", name).code == 0
    argument = () if command == "search" else (name,)
    resumed = call(command, *argument, "--resume", "--output", name)
    assert resumed.err.startswith(f"{name} is finished already")


@pytest.mark.usefixtures("old")
def test_an_old_search_derives_the_same_network() -> None:
    derived = quadranas.derive("run", device="cpu", budget="0.9ms", output="again", candidates=1)
    unrecorded = {"not_measured": "", "weight_bytes": None, "memory_bytes": None}
    assert all(getattr(derived, key) for key in unrecorded)  # which version 0.1.0 lacks
    expected = derived.moved_to(Path("derived")).model_copy(update=unrecorded)
    assert expected == quadranas.open_run("derived")
    weights = (Path(name, "subnet.safetensors").read_bytes() for name in ("again", "derived"))
    assert len(set(weights)) == 1
    found, before = (
        load_architecture(Path(name, "architecture.json")) for name in ("again", "derived")
    )
    assert found.provenance.items() > before.provenance.items()  # now with the score
    assert found.model_copy(update={"provenance": before.provenance}) == before
    old_table, new_table = (load_table(Path(name, "table.json")) for name in ("derived", "again"))
    header = new_table.header.model_copy(update={"model": None})  # tables of 0.1.0 have none
    assert new_table.model_copy(update={"header": header}) == old_table
    old, new = (read_config_file(Path(name, "config.yaml")).keys for name in ("derived", "again"))
    assert new == old | {"also": [], "max_size": None, "max_memory": None}


@pytest.mark.usefixtures("old")
def test_an_old_network_is_tested_and_trained_further() -> None:
    tested = quadranas.evaluate("trained")
    assert tested.num_images == 359
    assert tested.accuracy == pytest.approx(quadranas.open_run("trained").accuracy, abs=0.02)
    quadranas.train("derived", epochs=1, output="new")
    old, new = (read_config_file(Path(name, "config.yaml")).keys for name in ("trained", "new"))
    assert merged(new, old) == new  # which has more keys
