"""Several processes compute what one does, hold the same gates, and end together."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from quadranas.acceleration.processes import Processes
from quadranas.space.architecture import load_architecture
from tests.acceleration.joint_steps import train
from tests.acceleration.processes import run_together, start_together
from tests.command_line import SMALL, Outcome, Server, call, contents, until
from tests.sharing import Share

SAME_FILES = ("space.yaml", "table.json", "preprocessing.json")


@pytest.mark.parametrize(
    ("space", "keys", "counts"),
    [
        ("small-quadra", {}, (2, 4)),
        ("small-mbconv", {}, (2, 4)),
        ("small-mbconv", {"weights": "nested", "sandwich": 1, "distillation": True}, (2,)),
    ],
    ids=str,
)
def test_two_and_four_processes_compute_what_one_does(
    tmp_path: Path, server: Server, space: str, keys: dict[str, Any], counts: tuple[int, ...]
) -> None:
    alone = train(space, **keys)
    for count in counts:
        folder = tmp_path / str(count)
        prelude = (
            "from tests.acceleration.joint_steps import main; "
            f"main({space!r}, {str(folder)!r}, **{keys}); raise SystemExit"
        )
        outcomes = run_together(
            server, folder, count, preludes=dict.fromkeys(range(count), prelude)
        )
        assert [outcome.code for outcome in outcomes] == [0] * count, outcomes[0].err
        found = [torch.load(folder / f"{rank}.pt") for rank in range(count)]
        for tensors in found[1:]:
            for name, tensor in found[0].items():
                assert torch.equal(tensors[name], tensor), name
        for name, tensor in alone.items():
            torch.testing.assert_close(found[0][name], tensor, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("in_pairs", [False, True])
@pytest.mark.parametrize(("size", "count"), [(64, 2), (10, 4), (7, 3), (1, 4), (3, 4)])
def test_parts_cover_a_batch_once(size: int, count: int, in_pairs: bool) -> None:
    parts = [Processes(rank, count).part(size, in_pairs=in_pairs) for rank in range(count)]
    images = [i for part in parts if part.weight for i in range(part.start, part.end)]
    assert images == list(range(size))
    assert sum(part.weight for part in parts) == pytest.approx(1)
    assert all(part.end > part.start for part in parts)
    if in_pairs:
        assert all(part.start % 2 == 0 for part in parts)


@pytest.fixture
def search(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The arguments of a small search, in the working folder."""
    (tmp_path / "c.yaml").write_text(SMALL.format(pictures=pictures) + "checkpoint_seconds: 0\n")
    monkeypatch.chdir(tmp_path)
    return (
        *("search", "--space", "toy", "--device", "vpu", "--budget", "1ms"),
        *("--config", str(tmp_path / "c.yaml"), "--json"),
    )


@pytest.fixture
def whole(share: Share, server: Server, search: tuple[str, ...]) -> Path:
    """The folder of that search by two processes, in `run`, and what they printed."""

    def run(folder: Path) -> None:
        outcomes = run_together(server, folder, 2, *search, "--output", "run")
        assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
        only_main_speaks(outcomes)
        (folder / "result.json").write_text(outcomes[0].out, encoding="utf-8")

    return share("runs/together", run)


def printed(whole: Path) -> Any:
    return json.loads((whole / "result.json").read_text("utf-8"))


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def only_main_speaks(outcomes: list[Outcome]) -> None:
    assert all(outcome.out == "" and outcome.err == "" for outcome in outcomes[1:])


def test_a_search_by_two_processes_is_the_search_of_one_and_resumes_to_the_same_bits(
    search: tuple[str, ...], whole: Path
) -> None:
    assert call(*search, "--output", "one").code == 0
    result = printed(whole)
    assert (result["processes"], result["accelerator"]) == (2, "cpu")
    one, two = Path("one"), whole / "run"
    assert contents(one, SAME_FILES) == contents(two, SAME_FILES)
    assert blocks(one) == blocks(two)
    for here, there in zip(metrics(one), metrics(two), strict=True):
        assert here.pop("phase") == there.pop("phase")
        assert here == pytest.approx(there, rel=1e-3)


def blocks(folder: Path) -> Any:
    return load_architecture(folder / "architecture.json").blocks


SLOW = """
import quadranas.training.network_phase as phase, time
real = phase.weight_step
phase.weight_step = lambda *args: (time.sleep(0.2), real(*args))[1]
"""


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_ends_the_others_and_the_run_resumes_to_the_same_bits(
    tmp_path: Path, server: Server, search: tuple[str, ...], whole: Path, killed: int
) -> None:
    arguments = (*search, "--output", "run")
    slow = {0: SLOW, 1: SLOW}
    started = start_together(server, tmp_path / "killed", 2, *arguments, preludes=slow)
    run = tmp_path / "killed" / "run"
    until(lambda: (run / "architecture.json").is_file())
    time.sleep(0.3)
    started[killed].kill(signal.SIGKILL)
    began = time.monotonic()
    outcome = started[1 - killed].wait()
    assert time.monotonic() - began < 20
    assert started[killed].wait().code == -signal.SIGKILL
    assert outcome.code == 2
    assert outcome.err.count("another process of this training has ended") == 1
    # Only the main process knows the run's folder.
    line = "torchrun --nproc-per-node=2 -m quadranas search --resume --output run"
    assert (line if killed == 1 else "Continue the run with --resume") in outcome.err
    resume = ("search", "--resume", "--output", "run", "--json")
    outcomes = run_together(server, tmp_path / "killed" / "resumed", 2, *resume, at=run.parent)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    only_main_speaks(outcomes)
    assert outcomes[0].json()["notes"] == printed(whole)["notes"] == []
    assert contents(run) == contents(whole / "run")


def test_a_run_that_continues_with_another_number_of_processes_says_so(
    tmp_path: Path, server: Server, search: tuple[str, ...]
) -> None:
    stop = "import quadranas.training.network_phase as p; p.weight_step = None"
    arguments = (*search, "--output", "run")
    outcomes = run_together(server, tmp_path, 2, *arguments, preludes={0: stop, 1: stop})
    assert [outcome.code for outcome in outcomes] != [0, 0]
    outcome = call("search", "--resume", "--output", "run", "--json")
    assert outcome.code == 0, outcome.err
    assert "resumed with a number of processes of 1, begun with 2" in outcome.json()["notes"][0]
    assert [line["step"] for line in metrics(Path("run"))] == [2, 4, 4]


def test_processes_that_cannot_train_together_end_with_one_message(
    tmp_path: Path, server: Server, search: tuple[str, ...], pictures: Path
) -> None:
    def message(count: int, *more: str, preludes: dict[int, str] | None = None) -> str:
        folder = tmp_path / str(time.monotonic_ns())
        arguments = (*search, "--output", "run", *more)
        outcomes = run_together(server, folder, count, *arguments, preludes=preludes or {})
        assert all(outcome.code == 2 for outcome in outcomes), outcomes
        assert not (folder / "run").exists()
        errors = "".join(outcome.err for outcome in outcomes)
        assert errors.count("error:") == 1, errors
        return errors

    assert "a batch of 4 images cannot be split evenly among 3 processes" in message(3)
    assert "there is no accelerator 'cuda:7'" in message(2, "--accelerator", "cuda:7")
    fewer = (
        "import quadranas.data.splits as splits, quadranas.runs.config as config\n"
        "real = config.load_dataset\n"
        "def load(*args, **keys):\n"
        "    from dataclasses import replace\n"
        "    return replace(real(*args, **keys), class_names=('cat', 'wolf'))\n"
        "config.load_dataset = load"
    )
    assert "the images of process 1 differ" in message(2, preludes={1: fewer})
    missing = (
        "import quadranas.training.search_setup as setup\n"
        "from quadranas.data.listing import list_images\n"
        "setup.list_data = lambda config: list_images('no', None)"
    )
    assert "--data no does not exist" in message(2, preludes={1: missing})
    other = "import sys\nsys.argv += ['--skip-corrupt']"
    refused = message(2, preludes={1: other})
    assert "the command or configuration file of process 1 differs" in refused


def test_a_process_that_fails_before_the_others_are_met_says_why(
    tmp_path: Path, server: Server
) -> None:
    (tmp_path / "wrong.yaml").write_text("batch_siz: 4\n")
    prelude = (
        "import os\nos.environ.update(RANK='1', LOCAL_RANK='1', WORLD_SIZE='2')\n"
        "import quadranas.cli.console as console\nconsole.SECONDS_FOR_MAIN = 0.01"
    )
    arguments = ("search", "--config", str(tmp_path / "wrong.yaml"), "--output", "run")
    outcome = server.start(tmp_path, *arguments, prelude=prelude).wait()
    assert outcome.code == 2
    assert "error: process 1: " in outcome.err
    assert "batch_siz: unknown key" in outcome.err
