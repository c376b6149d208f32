"""Every command ends with one message, whatever its files are called and wherever it prints."""

import inspect
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from PIL import Image
from typer.models import OptionInfo

from quadranas.cli.app import GROUPS
from tests.command_line import CHECKOUT, Outcome, Server, call, listing, until
from tests.onnx_files import write

COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "search": (
        [],
        {"--device": "cpu", "--budget": "0.8ms", "--space": "toy", "--config": "small.yaml"},
    ),
    "derive": (["run"], {"--device": "gpu", "--budget": "1ms"}),
    "explore": (
        ["run"],
        {"--strategy": "random", "--trials": "2", "--device": "gpu", "--budget": "1ms"},
    ),
    "pareto": (["run"], {"--points": "2", "--candidates": "1"}),
    "recipes": ([], {}),
    "data": (["classes"], {}),
    "train": (["run"], {"--epochs": "1"}),
    "eval": (["run"], {}),
    "report": (["run"], {}),
    "devices": (["cpu"], {}),
    "spaces": (["toy"], {}),
    "build-lut": ([], {"--device": "cpu", "--space": "toy", "--output": "table.json"}),
    "validate-lut": ([], {"--device": "cpu", "--space": "toy"}),
    "calibrate": (
        [],
        {"--device": "host", "--space": "toy", "--from": "cpu", "--measure": "4", "--rounds": "2"},
    ),
    "merge-lut": (["cpu.json", "cpu.json"], {"--output": "merged.json"}),
    "predict": (["net.onnx"], {"--device": "cpu"}),
    "time": (["net.onnx"], {"--device": "host", "--input": "x=1,3,8,8", "--rounds": "2"}),
    "convert": (["quadranet36_t"], {"--output": "converted.json"}),
    "adapt": (["run"], {"--output": "adapted"}),
    "space-from": (["run"], {"--output": "space.yaml"}),
    "inspect": (["run"], {"--image": "photo.png"}),
    "profile": (["quadranet36_t"], {}),
    "export": (["run"], {}),
    "run": (["bundle", "photo.png"], {}),
    "compare": (["bundle", "bundle"], {"--rounds": "1"}),
    "publish": (["run/exports/onnx-fp32", "published"], {}),
}
"""Arguments and options of every command, without faults."""

QUICK = ("derive", "devices", "build-lut", "predict", "profile")
"""Commands that print a result within a second."""

TEXT_PATHS = ("model", "data", "val", "space", "device", "names", "weights", "init", "source")
"""Parameters that can name a file and are no `Path` on the command line."""

FUNCTIONS = {name: function for group in GROUPS for name, function in group.COMMANDS.items()}


def paths_of(command: str) -> dict[str, str]:
    """The parameters of a command that can name a file; per option its name in the shell."""
    found = {}
    for name, parameter in inspect.signature(FUNCTIONS[command], eval_str=True).parameters.items():
        if name in TEXT_PATHS or "Path" in str(parameter.annotation.__origin__):
            is_option = isinstance(parameter.annotation.__metadata__[0], OptionInfo)
            found[name] = f"--{name}" if is_option else ""
    return found


def command_line(command: str, **paths: str) -> list[str]:
    """A command line with some paths replaced."""
    arguments, options = COMMANDS[command]
    arguments, options = list(arguments), dict(options)
    positional = [name for name, option in paths_of(command).items() if not option]
    for name, value in paths.items():
        if name in positional:
            arguments[positional.index(name)] = value
        else:
            options[paths_of(command)[name]] = value
    return [command, *arguments, *(part for pair in options.items() for part in pair)]


@pytest.fixture
def workshop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path, small_config: Path
) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, tmp_path / "run")
    shutil.copy(small_config, tmp_path / "small.yaml")
    shutil.copy(CHECKOUT / "latency_tables" / "toy" / "cpu.json", tmp_path)
    shutil.copytree(CHECKOUT / "tests" / "golden" / "0.1.0" / "bundle-onnx", tmp_path / "bundle")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "photo.png")
    for label in ("cat", "dog"):
        for number in range(3):
            path = tmp_path / "classes" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((32, 32, 3), 9 * number, np.uint8)).save(path)
    write(tmp_path / "net.onnx", "y = Relu(x)")
    return tmp_path


@contextmanager
def limited(seconds: int = 100) -> Iterator[None]:
    """Fail instead of waiting for ever."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("the command waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_refused(outcome: Outcome) -> None:
    assert outcome.code == 2, outcome.err
    assert outcome.err.count("error: ") == 1
    assert "Traceback" not in outcome.err
    assert set(outcome.json()) == {"error", "hint"}


def new_files(folder: Path, before: list[str]) -> list[str]:
    return [name for name in listing(folder) if name not in before and (folder / name).is_file()]


def test_no_command_is_forgotten() -> None:
    assert set(COMMANDS) == set(FUNCTIONS)


@pytest.mark.parametrize("command", COMMANDS)
def test_names_that_no_file_can_have(workshop: Path, command: str) -> None:
    before = listing(workshop)
    for name in paths_of(command):
        for value in ("a" * 300, "a/" * 2100 + "b"):
            with limited():
                check_refused(call(*command_line(command, **{name: value}), "--json"))
            assert new_files(workshop, before) == [], name


@pytest.mark.parametrize("command", COMMANDS)
def test_files_that_are_no_files(workshop: Path, command: str) -> None:
    os.mkfifo("pipe.json")
    Path("device.json").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.json")
    before = listing(workshop)
    for name in paths_of(command):
        for path in ("pipe.json", "device.json", "socket.json"):
            with limited():
                check_refused(call(*command_line(command, **{name: path}), "--json"))
            assert not Path(path).is_file(), name
            assert new_files(workshop, before) == [], name


@pytest.mark.parametrize("command", COMMANDS)
def test_closed_stdout(workshop: Path, server: Server, command: str) -> None:
    before = listing(workshop)
    outcome = server.run(workshop, *command_line(command), ends={"stdout": "closed"})
    assert outcome.code == 2
    assert outcome.err == (
        "error: stdout is closed, so the result cannot be printed\n"
        "Redirect it to a file or to /dev/null.\n"
    )
    assert set(listing(workshop)) - set(before) == {"stdout", "stderr"}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("command", QUICK)
def test_streams_that_cannot_be_written(
    workshop: Path, server: Server, command: str, as_json: bool
) -> None:
    whole = [*command_line(command), *(["--json"] if as_json else [])]

    def run(**ends: str) -> Outcome:
        shutil.rmtree(workshop / "run" / "derived", ignore_errors=True)
        (workshop / "converted.json").unlink(missing_ok=True)
        return server.run(workshop, *whole, ends=ends)

    full = run(stdout="full")
    assert full.code == 2
    assert "error: cannot write to stdout: No space left on device\n" in full.err
    assert full.err.count("error: ") == 1
    piped = run(stdout="pipe")
    assert (piped.code, "\nerror: " in f"\n{piped.err}") == (141, False), piped.err
    assert run(stdout="closed", stderr="closed").code == 2
    for end in ("closed", "full", "pipe"):
        unread = run(stderr=end)
        assert unread.code == 0
        assert unread.out


@pytest.mark.parametrize("columns", ["0", "1", "20", "000", "-5", "\u00b2", "many", "9" * 20])
def test_any_number_of_columns(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    outcome = call("profile", "quadranet36_t")
    assert outcome.code == 0
    assert "norm_head" in outcome.out
    assert "Usage: quadranas" in call("--help").out


@pytest.mark.parametrize("end", ["closed", "full", "pipe"])
def test_an_error_that_cannot_be_printed(tmp_path: Path, server: Server, end: str) -> None:
    for ends in ({"stdout": end}, {"stderr": end}, {"stdout": end, "stderr": end}):
        outcome = server.run(tmp_path, "devices", "vpuu", "--json", ends=ends)
        assert outcome.code == 2
        if "stderr" not in ends:
            assert outcome.err.count("error: ") == 1
        if "stdout" not in ends:
            assert "vpuu" in outcome.json()["error"]


def test_sigterm_names_the_next_step(workshop: Path, server: Server) -> None:
    slow = (
        "import signal, time\nfrom quadranas.runs.run_folder import RunFolder\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "real = RunFolder.create\n"
        "def create(*args, **kwargs):\n    real(*args, **kwargs)\n    time.sleep(60)\n"
        "RunFolder.create = create\n"
    )
    arguments = command_line("search")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)):
        shutil.rmtree(workshop / "new", ignore_errors=True)
        process = server.start(workshop, *arguments, "--output", "new", "--json", prelude=slow)
        until((workshop / "new" / "config.yaml").exists)
        process.kill(number)
        outcome = process.wait()
        assert outcome.code == code, outcome.err
        assert outcome.json() == {
            "error": "interrupted; the run in new can be continued",
            "hint": "Continue with: quadranas search --resume --output new",
        }
        assert outcome.err.count("error: ") == 1


def test_sigterm_while_a_table_is_built(workshop: Path, server: Server) -> None:
    slow = (
        "import time\nimport quadranas.commands.build_lut as b\n"
        "b.build_lut = lambda *args, **kwargs: (open('begun', 'w'), time.sleep(60))"
    )
    process = server.start(
        workshop, "build-lut", "--device", "cpu", "--space", "toy", "--json", prelude=slow
    )
    until((workshop / "begun").exists)
    process.kill(signal.SIGTERM)
    outcome = process.wait()
    assert outcome.code == 143
    assert outcome.json()["hint"] == (
        "Repeat it with: quadranas build-lut --device cpu --space toy --json"
    )
