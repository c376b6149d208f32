"""Curves on an MLflow server: complete, continued, and never in the way of a training."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from quadranas.commands.train import train
from quadranas.errors import MissingExtraError, QuadranasError, RunInterruptedError
from quadranas.reporter import Reporter
from quadranas.runs.config import TrainConfig
from quadranas.runs.run_folder import RunFolder
from quadranas.training.tracking import VARIABLE, flattened

OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "checkpoint_seconds": 0.0}


class Told(Reporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def model(finished_run: Path) -> Path:
    return finished_run / "architecture.json"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tracking sets in the environment ends with the test."""
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")


def run(model: Path | None, folder: Path, pictures: Path, **more: Any) -> list[str]:
    reporter = Told()
    train(model, output=folder, reporter=reporter, data=str(pictures), **(OPTIONS | more))
    return [text for text in reporter.warnings if "MLflow" in text]


def test_nested_keys_are_flattened() -> None:
    keys = {"a": {"b": 1, "c": {"d": None, "e": "x"}}, "f": False}
    assert dict(flattened(keys)) == {"a.b": 1, "a.c.e": "x", "f": False}


def test_a_configured_server_needs_the_extra(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match="'mlflow' needs the package 'mlflow'"):
        run(model, tmp_path / "run", pictures, tracking="http://localhost:1")
    assert not (tmp_path / "run").exists()


def test_the_variable_alone_does_nothing_without_mlflow(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "http://localhost:1")
    monkeypatch.setattr("quadranas.training.tracking.find_spec", lambda name: None)
    assert run(model, tmp_path / "run", pictures) == []
    assert not (tmp_path / "run" / "mlflow.json").exists()


@pytest.mark.usefixtures("quick")
def test_a_server_that_cannot_be_reached_is_one_warning(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv(VARIABLE, closed)
    (warning,) = run(model, tmp_path / "run", pictures)
    assert warning.startswith(f"MLflow at {closed} fails, so this run is no longer tracked there")
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.filterwarnings("ignore:.*deprecated since. 2.1")  # MLflow's calls of SQLAlchemy 2.1
@pytest.mark.usefixtures("quick")
def test_the_curves_of_a_resumed_run_are_those_in_its_folder(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    real, calls = RunFolder.save_checkpoint, [0]

    def killed(self: RunFolder, state: Any) -> None:
        real(self, state)
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save_checkpoint", killed)
    with pytest.raises(RunInterruptedError):
        run(model, tmp_path / "run", pictures, tracking=uri, holdout=0.2)
    assert run(None, tmp_path / "run", pictures, tracking=uri, holdout=0.2, resume=True) == []
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("quadranas")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert (tracked.info.run_name, tracked.info.status) == ("run", "FINISHED")
    assert tracked.data.params["weights.optimizer"] == "adamw"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    for key in ("loss", "val_accuracy", "learning_rate"):
        history = client.get_metric_history(tracked.info.run_id, f"train/{key}")
        found = {metric.step: metric.value for metric in history}
        assert found == {n: json.loads(line)[key] for n, line in enumerate(lines, start=1)}
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"  # as the user has set it


def test_a_run_folder_does_not_choose_what_is_contacted(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(QuadranasError, match="tracking holds a password") as caught:
        run(model, tmp_path / "run", pictures, tracking="http://me:secret@localhost:1")
    assert "MLFLOW_TRACKING_PASSWORD" in caught.value.hint
    assert "secret" not in str(caught.value)


def test_a_training_does_not_inherit_a_server(finished_run: Path) -> None:
    from quadranas.runs.stored_network import StoredNetwork, inherited_config, open_network

    class Tracked(StoredNetwork):
        @property
        def config_keys(self) -> dict[str, Any]:
            return {"tracking": "http://localhost:1", "teacher": "timm:x", "batch_size": 4}

    stored = open_network(finished_run)
    tracked = Tracked(stored.architecture, stored.folder)
    inherited = inherited_config(tracked, TrainConfig())
    assert (inherited.tracking, inherited.teacher, inherited.batch_size) == (None, None, 4)
