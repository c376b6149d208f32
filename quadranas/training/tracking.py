"""The curves of a run on an MLflow tracking server, beside those of TensorBoard.

Tracking never stops a training: the first failure is a warning, after which it is off.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from quadranas.errors import QuadranasError
from quadranas.extras import require_extra
from quadranas.files import read_json, write_json
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.config import TrainingConfig
from quadranas.runs.records import Metrics
from quadranas.runs.run_folder import RunFolder
from quadranas.validation import Frozen, validate

VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT = "quadranas"
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""MLflow's settings, unless they are set: by default it tries for minutes before it gives up."""

MAX_PARAMS = 100
"""Number of parameters that MLflow takes in one call."""


class TrackedRun(Frozen):
    """The run on the tracking server that belongs to a run folder.

    Args:
        uri: the tracking server.
        run_id: MLflow's name for the run.
    """

    uri: str
    run_id: str


class Tracker:
    """Sends metrics to a run on a tracking server; `with` ends it there.

    Args:
        uri: the server, or the path of a local store.
    """

    def __init__(self, uri: str, folder: RunFolder, reporter: Reporter) -> None:
        self.uri, self.folder, self.reporter = uri, folder, reporter
        self._client: Any = None
        self._run_id = ""

    def begin(self, config: TrainingConfig) -> None:
        """Create the run on the server, or continue that of the run folder."""
        self._guarded(lambda: self._begin(config))

    def add_metrics(self, metrics: Metrics, number: int) -> None:
        """Send the numbers of an epoch's metrics, one curve per phase and key."""
        if self._client is not None:
            self._guarded(lambda: self._add(metrics, number))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            status = "FINISHED" if error is None else "KILLED"
            self._guarded(lambda: self._client.set_terminated(self._run_id, status))

    def _begin(self, config: TrainingConfig) -> None:
        for name, value in QUICK.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        client = MlflowClient(tracking_uri=self.uri)
        path = self.folder / layout.TRACKING
        if path.is_file():
            known = validate(TrackedRun, read_json(path, "tracked run"), path)
            if known.uri == self.uri:
                client.update_run(known.run_id, status="RUNNING")
                self._client, self._run_id = client, known.run_id
                return
        experiment = client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
        name = self.folder.path.absolute().name
        self._run_id = client.create_run(number, run_name=name).info.run_id
        params = [Param(key, str(value)) for key, value in flattened(config.model_dump())]
        for start in range(0, len(params), MAX_PARAMS):
            client.log_batch(self._run_id, params=params[start : start + MAX_PARAMS])
        write_json(path, TrackedRun(uri=self.uri, run_id=self._run_id).model_dump())
        self._client = client

    def _add(self, metrics: Metrics, number: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [
            Metric(f"{metrics['phase']}/{key}", value, now, number)
            for key, value in metrics.items()
            if isinstance(value, float)
        ]
        self._client.log_batch(self._run_id, metrics=found)

    def _guarded(self, work: Callable[[], object]) -> None:
        """Do something with the server; a failure is a warning, and ends the tracking."""
        try:
            work()
        except Exception as error:  # mlflow, requests and urllib3 each raise their own
            self._client = None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.reporter.warning(
                f"MLflow at {self.uri} fails, so this run is no longer tracked there; training "
                f"goes on: {reason}"
            )


def flattened(keys: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested keys with the values that are set, such as `weights.learning_rate`."""
    for key, value in keys.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def check_tracking(config: TrainingConfig) -> None:
    """Check before the training what a configured server needs.

    Raises:
        QuadranasError: the address contains a password, which would be stored.
        MissingExtraError: MLflow is not installed.
    """
    if config.tracking is None:
        return
    require_extra("mlflow", "mlflow")
    if urlsplit(config.tracking).password is not None:
        raise QuadranasError(
            "tracking holds a password, which would be stored in the run folder",
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead.",
        )


@contextmanager
def tracking(
    config: TrainingConfig, folder: RunFolder, reporter: Reporter
) -> Iterator[Tracker | None]:
    """The tracker of a run, as a context; None without an address, or without MLflow.

    The address is the configured one, or else that of the environment variable
    MLFLOW_TRACKING_URI.
    """
    uri = config.tracking or os.environ.get(VARIABLE)
    if not uri or find_spec("mlflow") is None:
        yield None
        return
    with Tracker(uri, folder, reporter) as tracker:
        tracker.begin(config)
        yield tracker
