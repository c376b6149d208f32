"""explore: a strategy chooses among the sub-networks of a trained supernet."""

import json
import shutil
from pathlib import Path

import pytest

import quadranas
from quadranas.space.architecture import load_architecture
from quadranas.strategies.registry import STRATEGIES
from tests.command_line import call

LIMITS = ("--device", "cpu", "--budget", "0.8ms")


@pytest.fixture
def here(tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.usefixtures("here")
def test_the_best_judged_network_inherits_its_weights(strategy: str) -> None:
    if STRATEGIES[strategy].package:
        pytest.importorskip(STRATEGIES[strategy].package)
    outcome = call("explore", "run", *LIMITS, "--strategy", strategy, "--trials", "6", "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json()
    folder = Path(f"run/explored/{strategy}-cpu-0.8ms")
    assert result["run"] == str(folder)
    trials = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert len(trials) == result["trials"] <= 6
    assert result["inherited_accuracy"] == max(trial["accuracy"] for trial in trials)
    assert all(trial["latency_ms"] <= 0.8 for trial in trials)
    assert result["predicted_ms"] <= result["budget_ms"] == 0.8
    architecture = load_architecture(folder / "architecture.json")
    assert architecture.provenance["strategy"] == strategy
    network = quadranas.open_run(folder).network()
    assert network.architecture == architecture


@pytest.mark.usefixtures("here")
def test_processes_share_the_trials_of_a_storage() -> None:
    pytest.importorskip("optuna")
    explore = ("explore", "run", *LIMITS, "--strategy", "tpe", "--storage", "study.journal")
    first = call(*explore, "--trials", "4", "--output", "one", "--json")
    assert first.code == 0, first.err
    more = call(*explore, "--trials", "6", "--output", "two", "--json")
    assert (first.json()["trials"], more.json()["trials"]) == (4, 6)
    assert more.json()["inherited_accuracy"] >= first.json()["inherited_accuracy"]
    other = call(*explore[:3], "gpu", *explore[4:], "--trials", "6", "--output", "three")
    assert other.code == 2
    assert "of another problem" in other.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--strategy", "evolutoin"), "unknown strategy 'evolutoin'"),
        (("--strategy", "random", "--storage", "x.journal"), "random has no --storage"),
        (("--strategy", "random", "--max-params", "10"), "at most 10 parameters"),
        (("--strategy", "random", "--seed", "-1"), "seed must be from 0 to 2147483647, got -1"),
        (("--strategy", "tpe", "--seed", "4294967296"), "seed must be from 0 to 2147483647"),
    ],
)
@pytest.mark.usefixtures("here")
def test_faults_are_one_message(options: tuple[str, ...], message: str) -> None:
    outcome = call("explore", "run", *LIMITS, *options, "--json")
    assert outcome.code == 2
    assert message in outcome.json()["error"]
    assert not Path("run/explored").exists()
