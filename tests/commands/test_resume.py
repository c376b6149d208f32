"""Killed runs: continued, they end as if they had not been; torn checkpoints and full disks."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import quadranas.training.network_phase
import quadranas.training.supernet_phase
from quadranas.runs.run_folder import RunFolder
from tests.command_line import (
    CHECKOUT,
    RESULTS,
    Outcome,
    Process,
    Server,
    call,
    contents,
    listing,
    until,
)
from tests.killing import Moment, When, killed, snapshots

SEARCH = ("search", "--device", "cpu", "--budget", "0.8ms", "--space", "toy", "--output", "run")
RESUME = ("search", "--resume", "--output", "run")

NO_REPORT = """
import quadranas.commands.search
import quadranas.commands.train
quadranas.commands.search.write_report = quadranas.commands.train.write_report = lambda run: run
"""
"""The report is drawn from the finished run, has tests of its own, and takes seconds."""


def replaced(name: str, nth: int = 1, when: When = "before") -> Moment:
    return Moment(Path, "replace", f"*{name}", nth, when)


def stepped(nth: int, when: When) -> Moment:
    return Moment(quadranas.training.supernet_phase, "joint_weight_step", "*", nth, when)


def tuned(nth: int) -> Moment:
    return Moment(quadranas.training.network_phase, "weight_step", "*", nth, "after")


def told(phase: str) -> Moment:
    return Moment(RunFolder, "append_metrics", f"*{phase}*", 1, "after")


MOMENTS = {
    "before the configuration": replaced("config.yaml"),
    "before the table": replaced("table.json"),
    "before the preprocessing": replaced("preprocessing.json"),
    "in the first step": stepped(1, "after"),
    "in the first checkpoint": Moment(torch, "save", "*", 1, "torn"),
    "before the first checkpoint": replaced(".pt"),
    "in the warm-up": stepped(2, "before"),
    "after the warm-up's metrics": told("warmup"),
    "at the end of the warm-up": stepped(3, "before"),
    "in the search": stepped(4, "after"),
    "in the search's last checkpoint": Moment(torch, "save", "*", 4, "torn"),
    "at the end of the search": replaced(".pt", 4, "after"),
    "before the gates": replaced("gates.json"),
    "before the supernet": replaced("supernet.safetensors"),
    "before the architecture": replaced("architecture.json"),
    "after the architecture": replaced("architecture.json", 1, "after"),
    "in the first step of the fine-tuning": tuned(1),
    "in the fine-tuning": tuned(3),
    "after the fine-tuning's metrics": told("finetune"),
    "at the end of the fine-tuning": replaced(".pt", 8, "after"),
    "before the weights": replaced("subnet.safetensors"),
    "before the result": replaced("result.json"),
}
RARE_CHECKPOINTS = ("in the search", "after the architecture", "after the fine-tuning's metrics")


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("search", "train"):
        monkeypatch.setattr(f"quadranas.commands.{command}.write_report", lambda run: run)


def config_with(small_config: Path, folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(small_config.read_text("utf-8") + text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, small_config: Path) -> Path:
    """With a checkpoint after every step."""
    return config_with(small_config, tmp_path_factory.mktemp("config"), "checkpoint_seconds: 0\n")


class Searched(NamedTuple):
    """A search that nothing disturbed, and folders in which it had got to some moments."""

    run: Path
    moments: Path


def search_in(folder: Path, config: Path, moments: Iterable[str]) -> Searched:
    (folder / "search").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "search")
        patch.setattr("quadranas.commands.search.write_report", lambda run: run)
        stops = {name: MOMENTS[name] for name in moments}
        snapshots(stops, folder / "moments", *SEARCH, "--config", config)
    run = folder / "search" / "run"
    assert set(contents(run)) == set(RESULTS)
    return Searched(run, folder / "moments")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Searched:
    return search_in(tmp_path_factory.mktemp("searched"), config, MOMENTS)


@pytest.fixture(scope="module")
def whole(searched: Searched) -> Path:
    return searched.run


@pytest.fixture(scope="module")
def rarely(tmp_path_factory: pytest.TempPathFactory, small_config: Path) -> Searched:
    """The same without a checkpoint in the middle of a phase."""
    folder = tmp_path_factory.mktemp("rarely")
    config = config_with(small_config, folder, "checkpoint_seconds: 1000\n")
    return search_in(folder, config, RARE_CHECKPOINTS)


def results(run: Path) -> dict[str, bytes]:
    """What has to be the same; the time between checkpoints may differ."""
    return contents(run, set(RESULTS) - {"config.yaml"})


def assert_same(run: Path, whole: Path) -> None:
    assert results(run) == results(whole)
    names = [
        name for name in listing(run) if not name.startswith(("checkpoints/", "tensorboard/"))
    ]
    assert names == [
        name for name in listing(whole) if not name.startswith(("checkpoints/", "tensorboard/"))
    ]
    assert not [name for name in listing(run) if name.endswith(".tmp")]


def resume(*command: str | Path) -> Outcome:
    outcome = call(*(command or RESUME))
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    return outcome


def stopped(folder: Path) -> None:
    """Have the working folder as it was at some moment."""
    shutil.copytree(folder, Path(), dirs_exist_ok=True)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_search_killed_at_any_moment_ends_as_if_it_had_not_been(
    searched: Searched, config: Path, moment: str
) -> None:
    stopped(searched.moments / moment)
    assert not Path("run/result.json").exists()
    begun = Path("run/config.yaml").is_file()
    assert begun == (moment != "before the configuration")
    if begun:
        resume()
    else:  # the folder knows nothing yet: the same command, with or without --resume
        resume(*SEARCH, "--config", config, "--resume")
    assert_same(Path("run"), searched.run)


@pytest.mark.parametrize("moment", RARE_CHECKPOINTS)
def test_what_no_checkpoint_holds_is_done_again(
    searched: Searched, rarely: Searched, moment: str
) -> None:
    stopped(rarely.moments / moment)
    assert len(list(Path("run/checkpoints").iterdir())) <= 1  # of the end of a phase
    resume()
    assert_same(Path("run"), searched.run)


def test_a_search_killed_again_and_again(
    tmp_path: Path, server: Server, config: Path, whole: Path
) -> None:
    delays = random.Random(0)
    command: tuple[str | Path, ...] = (*SEARCH, "--config", config, "--resume")
    for _ in range(4):
        process = server.start(tmp_path, *command, prelude=NO_REPORT)
        time.sleep(delays.uniform(0.05, 0.8))
        process.kill(signal.SIGKILL)
        assert process.wait().code in (0, -signal.SIGKILL)
    resume(*command)
    assert_same(tmp_path / "run", whole)


def test_a_process_of_its_own_killed_from_outside(
    tmp_path: Path, config: Path, whole: Path
) -> None:
    """The same without anything prepared: `python -m quadranas`, watched through its files."""
    path = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path}
    command = [sys.executable, "-m", "quadranas", *SEARCH, "--config", str(config), "--quiet"]
    metrics = tmp_path / "run" / "metrics.jsonl"
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    try:
        until(lambda: metrics.is_file() and b"search" in metrics.read_bytes())
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert '"accuracy"' in resume(*RESUME, "--json").out
    assert_same(tmp_path / "run", whole)


@pytest.fixture
def slow_steps() -> str:
    """A prelude with which steps take long enough to be interrupted from outside."""
    return f"""
{NO_REPORT}
import time
import quadranas.training.supernet_phase as training
real = training.joint_weight_step
training.joint_weight_step = lambda *args, **keys: (time.sleep(0.3), real(*args, **keys))[1]
"""


def test_ctrl_c_says_how_to_continue(
    tmp_path: Path, server: Server, config: Path, whole: Path, slow_steps: str
) -> None:
    process = server.start(tmp_path, *SEARCH, "--config", config, "--json", prelude=slow_steps)
    until(lambda: any((tmp_path / "run" / "checkpoints").glob("*.pt")))
    process.kill(signal.SIGINT)
    outcome = process.wait()
    assert outcome.code == 130
    assert outcome.json() == {
        "error": "interrupted; the run in run can be continued",
        "hint": "Continue with: quadranas search --resume --output run",
    }
    assert "Continue with: quadranas search --resume --output run" in outcome.err
    assert "Traceback" not in outcome.err
    command = outcome.json()["hint"].removeprefix("Continue with: quadranas ").split()
    resume(*command)
    assert_same(tmp_path / "run", whole)


DIE_TUNING = f"""
{NO_REPORT}
import os
import quadranas.training.network_phase as training
real = training.weight_step
calls = 0
def weight_step(*args):
    global calls
    calls += 1
    result = real(*args)
    if calls == 3:
        os.kill(os.getpid(), 9)
    return result
training.weight_step = weight_step
"""


@pytest.fixture(scope="module")
def killed_process(tmp_path_factory: pytest.TempPathFactory, server: Server, config: Path) -> Path:
    """What a real process leaves that is killed in the fine-tuning."""
    folder = tmp_path_factory.mktemp("killed")
    outcome = server.run(folder, *SEARCH, "--config", config, prelude=DIE_TUNING)
    assert outcome.code == -signal.SIGKILL
    return folder


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("tear", [cut, flip, empty])
def test_a_torn_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, killed_process: Path, whole: Path, tear: Callable[[Path], None]
) -> None:
    stopped(killed_process)
    checkpoints = tmp_path / "run" / "checkpoints"
    older, newer = sorted(checkpoints.iterdir())
    tear(newer)
    outcome = resume(*RESUME, "--quiet")  # a warning all the same
    torn = newer.relative_to(tmp_path)
    assert f"warning: checkpoint {torn} is damaged; falling back to {older.name}" in outcome.err
    assert newer not in checkpoints.iterdir()
    assert_same(tmp_path / "run", whole)


def test_with_all_checkpoints_torn_a_run_begins_again(
    tmp_path: Path, killed_process: Path, whole: Path
) -> None:
    stopped(killed_process)
    checkpoints = tmp_path / "run" / "checkpoints"
    for path in checkpoints.iterdir():
        cut(path)
    outcome = resume()
    assert outcome.err.count("is damaged") == 2
    assert "is damaged; beginning again" in outcome.err
    assert_same(tmp_path / "run", whole)


def test_a_finished_run_is_left_alone(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    outcome = resume()
    assert "run is finished already" in outcome.err
    assert "test accuracy" in outcome.out
    assert_same(tmp_path / "run", whole)


def test_the_run_keeps_its_own_table_and_space(tmp_path: Path, config: Path, whole: Path) -> None:
    """What changed outside since the run was begun does not change its result."""
    (tmp_path / "own.yaml").write_text("extends: toy\nname: own\n", encoding="utf-8")
    build = ("build-lut", "--device", "cpu", "--space", "own.yaml")
    assert call(*build).code == 0
    command = ("search", "--device", "cpu", "--budget", "0.8ms", "--space", "own.yaml")
    killed(MOMENTS["in the search"], *command, "--config", config, "--output", "own")
    table = tmp_path / "latency_tables" / "own" / "cpu.json"
    table.write_text(table.read_text("utf-8").replace('"latency_ms": 0.', '"latency_ms": 7.'))
    (tmp_path / "own.yaml").write_text("extends: toy\nname: own\nwidths: [8, 8]\n")
    resume("search", "--resume", "--output", "own")
    same = ("metrics.jsonl", "subnet.safetensors")
    assert contents(tmp_path / "own", same) == contents(whole, same)


CONTRADICTIONS = {
    ("--seed", "1"): "cannot resume run: the run has seed 0, got 1",
    ("--budget", "1ms"): "cannot resume run: the run has budget '0.8ms', got '1ms'",
    ("--space", "mbconv-mobile"): "the run has space 'toy', got 'mbconv-mobile'",
    ("--max-macs", "7"): "the run has max_macs None, got 7",
    ("--config", "other.yaml"): "the run has schedule.search_epochs 1, got 5",
}


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS.items())
def test_resuming_with_other_options_is_refused(
    tmp_path: Path, whole: Path, options: tuple[str, ...], message: str
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "other.yaml").write_text("schedule: {search_epochs: 5}\n", encoding="utf-8")
    outcome = call(*RESUME, *options)
    assert outcome.code == 2
    assert message in outcome.err
    assert "start a new run with another --output" in outcome.err
    assert_same(tmp_path / "run", whole)


def test_resuming_on_other_images_is_refused(tmp_path: Path, config: Path, pictures: Path) -> None:
    shutil.copytree(pictures, tmp_path / "own")
    killed(MOMENTS["in the search"], *SEARCH, "--config", config, "--data", "own")
    (tmp_path / "own" / "train" / "cat" / "0.png").unlink()
    outcome = call(*RESUME)
    assert outcome.code == 2
    assert "cannot resume run: its data have changed since it was begun" in outcome.err


def test_resume_without_a_folder_takes_the_run_that_agrees(
    tmp_path: Path, config: Path, whole: Path
) -> None:
    for folder in ("runs/mine-1", "runs/other-1", "runs/train-1"):
        (tmp_path / folder).mkdir(parents=True)
    for name, budget in (("mine-1", "0.8ms"), ("other-1", "0.9ms")):
        killed(
            MOMENTS["in the search"],
            *("search", "--device", "cpu", "--budget", budget, "--space", "toy"),
            *("--config", config, "--output", f"runs/{name}"),
        )
    outcome = resume("search", "--resume", "--budget", "0.8ms")
    assert "run runs/mine-1" in outcome.out
    same = ("gates.json", "subnet.safetensors", "metrics.jsonl")
    assert contents(tmp_path / "runs/mine-1", same) == contents(whole, same)
    outcome = call("search", "--resume", "--budget", "0.8ms")
    assert outcome.code == 2
    assert "no unfinished run under runs/ matches the given options" in outcome.err
    assert "unfinished: runs/other-1" in outcome.err


TRAIN_MOMENTS = {
    "before the configuration": MOMENTS["before the configuration"],
    "before the preprocessing": MOMENTS["before the preprocessing"],
    "before the first weights": replaced("inherited.safetensors"),
    "before the network": MOMENTS["before the architecture"],
    "in the first step": tuned(1),
    "in the first checkpoint": Moment(torch, "save", "*", 1, "torn"),
    "after the metrics": told("train"),
    "in the second epoch": tuned(6),
    "at the end of the training": replaced(".pt", 8, "after"),
    "before the weights": MOMENTS["before the weights"],
    "before the result": MOMENTS["before the result"],
}


def last_checkpoint(run: Path) -> Any:
    newest = max((run / "checkpoints").iterdir())
    return torch.load(newest, weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Equality through mappings, lists and tensors."""
    if isinstance(one, dict):
        return set(one) == set(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


STATEFUL = ("in the first checkpoint", "in the second epoch", "at the end of the training")
"""Moments that leave checkpoints behind, or half of one; at the others no optimizer matters."""


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [("adamw", tuple(TRAIN_MOMENTS)), ("sgd", STATEFUL)],
    ids=["adamw", "sgd"],
)
def test_a_killed_training_ends_as_if_it_had_not_been(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    whole: Path,
    optimizer: str,
    names: tuple[str, ...],
) -> None:
    stops = {name: TRAIN_MOMENTS[name] for name in names}
    text = f"checkpoint_seconds: 0\nweights: {{optimizer: {optimizer}, learning_rate: 0.01}}\n"
    Path("train.yaml").write_text(text, encoding="utf-8")
    shutil.copytree(whole, "searched")
    command = ("train", "searched", "--config", "train.yaml", "--epochs", "2", "--output", "run")
    moments = tmp_path_factory.mktemp("moments")
    snapshots(stops, moments, *command)
    files = ("architecture.json", "metrics.jsonl", "subnet.safetensors", "inherited.safetensors")
    expected = contents(Path("run"), files)
    assert set(expected) == set(files)
    last = last_checkpoint(Path("run"))
    for moment in stops:
        monkeypatch.chdir(moments / moment)
        assert not Path("run/result.json").exists()
        resume(*command, "--resume")
        assert contents(Path("run"), files) == expected
        assert same(last_checkpoint(Path("run")), last)
    other = call("train", "quadranet36_t", "--resume", "--output", "run")
    assert "run is finished already" in other.err
    Path("run/result.json").unlink()
    other = call("train", "quadranet36_t", "--resume", "--output", "run")
    assert other.code == 2
    assert "it trains 'toy-cpu-800us', not the current 'quadranet36_t'" in other.err
    resume("train", "run", "--resume", "--output", "run")
    assert contents(Path("run"), files) == expected


def test_a_training_process_killed_from_outside(
    tmp_path: Path, server: Server, whole: Path
) -> None:
    Path("train.yaml").write_text("checkpoint_seconds: 0\n", encoding="utf-8")
    train = ("train", whole, "--config", "train.yaml", "--epochs", "2", "--output")
    assert server.run(tmp_path, *train, "run", prelude=DIE_TUNING).code == -signal.SIGKILL
    assert re.match(r"process \d+ of user ", Path("run/.lock").read_text("utf-8"))
    resume("train", "--resume", "--output", "run")
    assert call(*train, "other").code == 0
    files = ("architecture.json", "metrics.jsonl", "subnet.safetensors")
    assert contents(Path("run"), files) == contents(Path("other"), files)
    assert not Path("run/.lock").exists()


WAIT_AFTER_WARMUP = f"""
{NO_REPORT}
import os, time
import quadranas.training.supernet_phase as training
real = training.joint_weight_step
def step(*args, **settings):
    while os.path.exists("runs/x-1/metrics.jsonl") and not os.path.exists("go"):
        time.sleep(0.01)
    return real(*args, **settings)
training.joint_weight_step = step
"""


def test_two_processes_do_not_share_a_run(
    tmp_path: Path, server: Server, config: Path, whole: Path
) -> None:
    """While one works, --resume is refused, and without --output finds nothing to continue."""
    search = (*SEARCH[:-1], "runs/x-1", "--config", config)
    process = server.start(tmp_path, *search, prelude=WAIT_AFTER_WARMUP)
    run = tmp_path / "runs" / "x-1"
    owner = f"in use by process {process.pid} of user "
    try:
        until(lambda: (run / "metrics.jsonl").is_file())
        for options in ((*RESUME[:-1], "runs/x-1"), ("search", "--resume")):
            outcome = call(*options)
            assert outcome.code == 2
            assert owner in outcome.err
    finally:
        (tmp_path / "go").touch()
    assert process.wait().code == 0
    same = ("gates.json", "metrics.jsonl", "subnet.safetensors")
    assert contents(run, same) == contents(whole, same)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("only root can mount a small file system, and this is how on Linux only")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False
        )
        if done.returncode:
            pytest.skip("mount is not permitted here")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_too_small_is_refused_before_training(
    server: Server, config: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("200k")
    outcome = server.run(disk, *SEARCH, "--config", config, "--json")
    assert outcome.code == 2
    assert "the disk of run has 0.2 MiB free; this run needs about 0.3 MiB" in outcome.err
    assert outcome.json()["hint"] == "Free some space or choose another --output."
    assert listing(disk) == ["stderr", "stdout"]


@pytest.mark.parametrize(("left", "calls"), [(40_000, 3), (0, 4)])
def test_a_disk_that_fills_up_costs_nothing(
    server: Server,
    config: Path,
    whole: Path,
    small_disk: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    left: int,
    calls: int,
) -> None:
    disk = small_disk("2M")
    fill = f"""
{NO_REPORT}
import os
import quadranas.training.supernet_phase as training
real = training.joint_weight_step
calls = 0
def step(*args, **settings):
    global calls
    calls += 1
    if calls == {calls}:
        free = os.statvfs(".").f_bavail * os.statvfs(".").f_frsize
        open("ballast", "wb").write(bytes(free - {left}))
    return real(*args, **settings)
training.joint_weight_step = step
"""
    outcome = server.run(disk, *SEARCH, "--config", config, prelude=fill)
    assert outcome.code == 2, outcome.err
    assert re.search("error: cannot write (a checkpoint to )?run/", outcome.err)
    assert "Free some space, then continue with --resume." in outcome.err
    assert "Traceback" not in outcome.err
    assert len(list((disk / "run" / "checkpoints").iterdir())) == 2
    (disk / "ballast").unlink()
    with monkeypatch.context() as there:  # a working folder cannot be unmounted
        there.chdir(disk)
        resume()
    assert_same(disk / "run", whole)


def test_a_file_that_may_not_grow_costs_nothing(
    tmp_path: Path, server: Server, config: Path, whole: Path
) -> None:
    """The same as a full disk, for everybody: a limit on the size of files."""
    limit = (
        f"{NO_REPORT}\nimport resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (50_000,) * 2)"
    )
    outcome = server.run(tmp_path, *SEARCH, "--config", config, prelude=limit)
    assert outcome.code == 2, outcome.err
    assert "cannot write a checkpoint to run/checkpoints" in outcome.err
    assert "Traceback" not in outcome.err
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    resume()
    assert_same(tmp_path / "run", whole)


def test_processes_are_real(server: Server, tmp_path: Path) -> None:
    """The harness itself: output, exit code and signals arrive."""
    outcome = server.run(tmp_path, "--version")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("quadranas ")
    process = server.start(tmp_path, "--version", prelude="import time; time.sleep(60)")
    assert isinstance(process, Process)
    process.kill(signal.SIGTERM)
    assert process.wait().code == -signal.SIGTERM
