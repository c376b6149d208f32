"""The commands that measure, on a board behind a real sshd on loopback."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from quadranas.backends import ssh_host
from quadranas.backends.ssh_host import SshHost
from quadranas.latency.journal import Journal
from quadranas.latency.table_files import load_table
from tests.command_line import call
from tests.measuring import trace_exports
from tests.ssh_board import ABSENT, SshBoard, ssh_board

pytestmark = [
    pytest.mark.skipif(bool(ABSENT), reason=ABSENT),
    pytest.mark.usefixtures("exports"),
]


@pytest.fixture(scope="module")
def behind_ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBoard]:
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("board")
    with ssh_board(folder) as found, pytest.MonkeyPatch.context() as patch:
        trace_exports(patch)
        patch.setattr(ssh_host, "PAUSES_S", (0.1,))
        patch.chdir(folder)
        found.device().save(folder / "board.yaml")
        yield found


@pytest.fixture(scope="module")
def bundle(behind_ssh: SshBoard, finished_run: Path) -> Path:
    """What is exported for the board, of a network derived with a table measured there."""
    if not Path("latency_tables/toy/board.json").is_file():
        assert call(*BUILD).code == 0
    device = ("--device", "board.yaml", "--json")
    derived = call("derive", finished_run, *device, "--budget", "100ms", "--output", "derived")
    assert derived.code == 0, derived.err
    assert derived.json()["measured_ms"] > 0
    exported = call("export", "derived", *device, "--output", "bundle", "--images", "2")
    assert exported.code == 0, exported.err
    assert exported.json()["measured_ms"] > 0
    return Path("bundle")


class Timings:
    """Records the timings of the board by program and round, and stops it after some requests."""

    def __init__(self, found: SshBoard, stop_after: int | None = None) -> None:
        self.found, self.stop_after = found, stop_after
        self.requests = 0
        self.added: list[tuple[str, int]] = []

    def __enter__(self) -> "Timings":
        self.patch = pytest.MonkeyPatch()
        observe, add = SshHost.observe, Journal.add

        def counted(host: SshHost, answer: Mapping[str, Any]) -> None:
            observe(host, answer)
            self.requests += 1
            if self.requests == self.stop_after:
                self.found.stop()

        def recorded(journal: Journal, program: str, number: int, *timing: Any) -> None:
            add(journal, program, number, *timing)
            self.added.append((program, number))

        self.patch.setattr(SshHost, "observe", counted)
        self.patch.setattr(Journal, "add", recorded)
        return self

    def __exit__(self, *raised: object) -> None:
        self.patch.undo()


BUILD = (
    *("build-lut", "--device", "board.yaml", "--space", "toy", "--rounds", "2"),
    *("--max-residual", "9", "--json"),
)


def test_a_table_is_measured_through_a_board_that_goes_away(behind_ssh: SshBoard) -> None:
    with Timings(behind_ssh, stop_after=20) as first:
        lost = call(*BUILD)
    assert lost.code == 2
    assert set(lost.json()) == {"error", "hint"}
    assert "device 'board' (board) was lost 6 times" in lost.json()["error"]
    assert lost.err.count("error:") == 1
    assert "connecting again in 0.1 s" in " ".join(lost.err.split())
    (journal,) = Path("latency_tables/toy").iterdir()
    kept = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert [(line["program"], line["round"]) for line in kept] == first.added
    assert len(kept) > 5
    behind_ssh.start()
    with Timings(behind_ssh) as second:
        made = call(*BUILD)
    assert made.code == 0, made.err
    both = first.added + second.added
    assert len(set(both)) == len(both)  # nothing was timed twice
    table = load_table(made.json()["path"])
    measurement = table.header.measurement
    assert measurement is not None
    assert table.header.runtime.startswith("ONNX Runtime")
    assert measurement.settings["cores"]
    assert measurement.num_throttled == 0


def test_networks_and_files_are_measured_there(
    behind_ssh: SshBoard, bundle: Path, pictures: Path
) -> None:
    device = ("--device", "board.yaml", "--json")
    with Timings(behind_ssh) as timings:
        validated = call("validate-lut", *device, "--space", "toy", "--networks", "2")
    assert validated.code in (0, 3), validated.err  # two rounds make no good table
    assert timings.requests > 0
    with Timings(behind_ssh) as timings:
        labelled = call("run", bundle, pictures / "test/cat/0.png", *device)
        assert labelled.code == 0, labelled.err
        assert labelled.json()["results"][0]["ms"] > 0
        assert timings.requests > 0
    timed = call("time", bundle / "model.onnx", *device, "--rounds", "2")
    assert timed.code == 0, timed.err
    assert timed.json()["runtime"].startswith("ONNX Runtime")


def test_a_run_folder_does_not_say_what_is_contacted(behind_ssh: SshBoard, bundle: Path) -> None:
    with Timings(behind_ssh) as timings:
        here = call("export", "derived", "--output", "unnamed", "--images", "2", "--json")
        assert here.code == 0, here.err
        assert here.json()["measured_on"] != "board"
        labelled = call("run", bundle, "derived/no.png", "--json")
        assert labelled.code == 2
        assert "--ssh USER@HOST" in labelled.json()["hint"]
    assert timings.requests == 0
