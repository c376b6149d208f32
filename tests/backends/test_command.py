"""The runtime `command`: programs that do what they should, and programs that do not."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch
from torch import nn

from quadranas.backends.command import CommandBackend
from quadranas.backends.registry import open_backend
from quadranas.errors import QuadranasError
from quadranas.latency.device import Device, load_device
from quadranas.measurement.bench import Bench, Job
from quadranas.measurement.plan import Plan
from quadranas.measurement.plausibility import CheckedReference
from quadranas.measurement.probes import REFERENCE_OP, chain_probe, null_probe
from quadranas.reporter import Reporter
from tests.command_tool import TOOL
from tests.measuring import board

pytestmark = pytest.mark.usefixtures("exports")

QUIET = Reporter(quiet=True)
Opened = Callable[..., CommandBackend]


def device_with(**command: Any) -> Device:
    """A device whose command is the tool of the tests, with changes."""
    return board(runtime="command", command=TOOL | command).allowing_commands()


def script(text: str) -> list[str]:
    """A command that executes Python, and is called with the file and the number of calls."""
    return [sys.executable, "-SIc", text, "{file}", "{repeats}"]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Opens devices with changed commands."""
    backends = []

    def open_changed(**command: Any) -> CommandBackend:
        backend = open_backend(device_with(**command), tmp_path)
        assert isinstance(backend, CommandBackend)
        backends.append(backend)
        return backend

    yield open_changed
    for backend in backends:
        backend.close()


def failure(backend: CommandBackend, repeats: int = 2) -> QuadranasError:
    """The error of timing a program."""
    program = backend.compile(null_probe(), (1, 1, 1, 1))
    with pytest.raises(QuadranasError) as caught:
        program.time_ms(repeats)
    return caught.value


# Permission


def test_commands_run_only_where_they_are_allowed(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    run = script(f"open({str(trap)!r}, 'w')")
    plain = board(runtime="command", command=TOOL | {"run": run})
    with pytest.raises(QuadranasError, match="is measured by a command of its file") as caught:
        open_backend(plain, tmp_path)
    assert "--allow-commands" in caught.value.hint
    assert not trap.exists()


def test_no_file_can_allow_its_own_commands(tmp_path: Path) -> None:
    device = device_with()
    assert device.allows_commands
    assert device.configured(threads=2).allows_commands
    device.save(tmp_path / "board.yaml")
    assert "allow" not in (tmp_path / "board.yaml").read_text(encoding="utf-8")
    assert not load_device(tmp_path / "board.yaml").allows_commands
    assert load_device(tmp_path / "board.yaml", allow_commands=True).allows_commands
    for key in ("allows_commands", "_allows_commands", "allow_commands"):
        with pytest.raises(QuadranasError, match="unknown key"):
            board(runtime="command", command=TOOL).configured(**{key: True})


def test_a_file_of_others_has_no_commands(tmp_path: Path) -> None:
    with pytest.raises(QuadranasError, match="has no section 'command'"):
        open_backend(device_with().without_reach().allowing_commands(), tmp_path)


# Arguments


def test_arguments_never_pass_through_a_shell(opened: Opened, tmp_path: Path) -> None:
    odd = "; touch x && $(touch y) `touch z` > w | cat * \"quoted\" 'too' {not one}"
    text = "import sys; print(f'took 1 ms, {sys.argv[3:]}')"
    run = [*script(text), odd]
    program = opened(run=run, times={"pattern": "took ([0-9]+) ms", "unit": "ms"}).compile(
        null_probe(), (1, 1, 1, 1)
    )
    _, printed, _ = program._call(repeats=3)
    assert printed.strip() == f"took 1 ms, {[odd]}"
    assert not list(tmp_path.iterdir())


def test_placeholders_say_what_is_timed(opened: Opened) -> None:
    places = "{name} {shape} {shape:x} {batch} {repeats} {threads} {precision} {other:x}"
    run = [*script("import sys; print(sys.argv[3])"), places.removesuffix(" {other:x}")]
    program = opened(run=run).compile(null_probe(), (2, 1, 4, 3))
    _, printed, _ = program._call(repeats=7)
    assert printed.strip() == "model0001.onnx 2,1,4,3 2x1x4x3 2 7 1 fp32"
    with pytest.raises(ValueError, match=r"unknown placeholder.*did you mean 'repeats'"):
        device_with(run=["tool", "{file}", "{repeat}"])


def test_a_set_up_runs_once_for_each_file(opened: Opened, tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    note = f"import sys; open({str(noted)!r}, 'a').write(sys.argv[1][-14:])"
    backend = opened(setup=script(note), run=script("print('call took 50 ms')"))
    first = backend.compile(null_probe(), (1, 1, 1, 1))
    second = backend.load(first.path, (1, 1, 1, 1))
    for program in (first, second, first):
        with pytest.raises(QuadranasError, match="reported 50 ms per call"):
            program.time_ms(2)
    assert noted.read_text(encoding="utf-8") == "model0001.onnx" * 2


def test_an_impossible_command_is_one_error() -> None:
    for changes, message in (
        ({"run": ["tool"]}, "run or setup needs an argument with {file}"),
        ({"run": []}, "at least 1 item"),
        ({"run": None}, "run and times must both be set"),
        ({"run": None, "times": None, "setup": ["a", "{file}"]}, "setup needs run"),
        ({"format": "tvm"}, "unknown format; accepted: onnx, openvino, torch, executorch, litert"),
        ({"run": ["tool", "{file}", "a\0b"]}, "null character"),
    ):
        with pytest.raises(ValueError, match=message):
            device_with(**changes)


# How times are read


@pytest.mark.parametrize(
    ("times", "printed", "expected"),
    [
        ({"pattern": "([0-9.]+) us", "unit": "us"}, "7 us 8.5 us", [0.007, 0.0085]),
        ({"pattern": "avg=([0-9.e+-]+)", "unit": "s"}, "avg=1.5e-3", [1.5]),
        ({"pattern": "(?:a|b) ([0-9]+)(?P<unit>ms|us)"}, "a 3ms\nb 4us", [3, 0.004]),
        ({"json_path": "runs.*.ms", "unit": "ms"}, '{"runs": [{"ms": 1}, {"ms": 2.5}]}', [1, 2.5]),
        ({"json_path": "0.latency", "unit": "ns"}, 'note\n[{"latency": 250}]\nend', [0.00025]),
        ({"json_path": "all", "unit": "ms"}, '{"all": ["1", 2]}', [1, 2]),
        ({"json_path": "all", "unit": "ms"}, '{"other": 1}', []),
        ({"json_path": "all", "unit": "ms"}, "no json", []),
        ({"json_path": "-2", "unit": "ms"}, "[1, 2, 3]", [2]),
        ({"json_path": "-4", "unit": "ms"}, "[1, 2, 3]", []),
        ({"json_path": "--1", "unit": "ms"}, "[1, 2, 3]", []),
    ],
)
def test_times_are_read_from_text_and_json(
    times: dict[str, Any], printed: str, expected: list[float]
) -> None:
    command = device_with(times=times).command
    assert command is not None
    assert command.times is not None
    assert command.times.read_ms(printed) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"pattern": "[0-9]+", "unit": "ms"}, "exactly one group"),
        ({"pattern": "(a)(b)", "unit": "ms"}, "exactly one group"),
        ({"pattern": "(a", "unit": "ms"}, "not a regular expression"),
        ({"pattern": "(a)"}, "unit of the times must be said once"),
        ({"pattern": "(a) (?P<unit>ms)", "unit": "ms"}, "unit of the times must be said once"),
        ({"unit": "ms"}, "either pattern or json_path"),
        ({"json_path": "a", "pattern": "(a)", "unit": "ms"}, "either pattern or json_path"),
        ({"json_path": "a", "unit": "minutes"}, "Input should be 's', 'ms', 'us' or 'ns'"),
    ],
)
def test_a_faulty_description_is_one_error(times: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        device_with(times=times)


def test_times_can_come_from_a_file(opened: Opened) -> None:
    text = "import sys, time; time.sleep(0.01); open(sys.argv[3], 'w').write('[1, 2, 3]')"
    times = {"json_path": "*", "unit": "ms", "file": "{folder}/times.json"}
    backend = opened(run=[*script(text), "{folder}/times.json"], times=times)
    program = backend.compile(null_probe(), (1, 1, 1, 1))
    assert program.time_ms(3) == [1, 2, 3]


# Programs that do not do what they should


def test_a_program_that_is_not_there_is_named_before_anything_is_written(
    tmp_path: Path, opened: Opened
) -> None:
    with pytest.raises(QuadranasError, match="cannot run 'no-such-tool': no such program"):
        opened(run=["no-such-tool", "{file}"])
    with pytest.raises(QuadranasError, match="cannot run"):
        opened(setup=["no-such-tool", "{file}"])
    (tmp_path / "tool").write_text("not executable", encoding="utf-8")
    with pytest.raises(QuadranasError, match="cannot run"):
        opened(run=[str(tmp_path / "tool"), "{file}"])


def test_another_exit_code_is_an_error_with_the_last_lines(opened: Opened) -> None:
    text = "import sys; print(*range(99), sep='\\n', flush=True); sys.exit('no such board')"
    error = failure(opened(run=script(text)))
    assert "ended with code 1; its last lines:\n" in error.message
    assert error.message.splitlines()[1:] == [
        *(f"  {i}" for i in range(92, 99)),
        "  no such board",
    ]
    killed = failure(opened(run=script("import os; os.kill(os.getpid(), 9)")))
    assert "ended with signal 9; it printed nothing" in killed.message


def test_a_program_that_hangs_is_stopped_with_its_children(opened: Opened, tmp_path: Path) -> None:
    child = tmp_path / "child"
    text = (
        "import os, time; print('waiting', flush=True); child = os.fork();"
        f"child or open({str(child)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    )
    start = time.monotonic()
    error = failure(opened(run=script(text), timeout_seconds=0.5))
    assert time.monotonic() - start < 20
    assert "did not end within 0.5 s and was stopped; its last lines:\n  waiting" in error.message
    status = Path(f"/proc/{child.read_text(encoding='utf-8')}/stat")
    for _ in range(200):  # until the system has ended it
        if not status.exists() or status.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child still runs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "reported no time: 'call took .* is not found in what it prints; it printed nothing"),
        ("print('call took long')", "reported no time"),
        ("print('call took 0 ms')", "reported times that are not positive"),
        ("print('call took 1.2.3 ms')", "reported no time that can be read"),
        ("print('call took 86400000 ms')", "reported 8.64e.07 ms per call, but ended after"),
    ],
)
def test_what_is_no_latency_is_refused(opened: Opened, text: str, message: str) -> None:
    error = failure(opened(run=script(text)))
    assert error.message.count("\n") <= 8
    with pytest.raises(QuadranasError, match=message):
        raise error


def test_seconds_for_milliseconds_are_refused(opened: Opened) -> None:
    """A tool that prints 0.4 ms as 0.0004."""
    seconds = script("import time; time.sleep(0.01); print('call took 0.0004 ms')")
    backend = opened(run=seconds)
    bench = Bench(backend.device, backend)
    with pytest.raises(QuadranasError, match="more than 100 times shorter") as caught:
        bench.time({"null": Job(null_probe, 1, 1)}, QUIET, Plan(num_rounds=2, repeats=2))
    assert "plausible_factor" in caught.value.hint
    patient = opened(run=seconds, plausible_factor=1e5)
    null = {"null": Job(null_probe, 1, 1)}
    timings = Bench(patient.device, patient).time(null, QUIET, Plan(num_rounds=2, repeats=2))
    assert timings.reference_ms == 0.0004


def test_hours_for_milliseconds_are_refused(opened: Opened) -> None:
    backend = opened(run=script("import time; time.sleep(0.4); print('call took 400 ms')"))
    with pytest.raises(QuadranasError, match="more than 100 times longer"):
        Bench(backend.device, backend).time({"null": Job(null_probe, 1, 1)}, QUIET)


# Numbers


def test_a_tool_without_outputs_cannot_be_compared(opened: Opened) -> None:
    backend = opened(output_file=None)
    program = backend.compile(null_probe(), (1, 1, 1, 1))
    with pytest.raises(QuadranasError, match="writes no output, so its numbers cannot be"):
        program.run(torch.zeros(1, 1, 1, 1))


def test_an_output_that_is_missing_or_damaged_is_one_error(opened: Opened) -> None:
    for text in ("", "import sys; open(sys.argv[3], 'w').write('text')"):
        backend = opened(run=[*script(text), "{output}"])
        program = backend.compile(null_probe(), (1, 1, 1, 1))
        with pytest.raises(QuadranasError, match="wrote no npy file that can be read"):
            program.run(torch.zeros(1, 1, 1, 1))


def test_raw_files_hold_float32_alone(opened: Opened) -> None:
    copy = "import sys, shutil; shutil.copy(sys.argv[3], sys.argv[4])"
    backend = opened(
        run=[*script(copy), "{input}", "{output}"], input_file="raw", output_file="raw"
    )
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    program = backend.compile(nn.Flatten().eval(), images.shape)
    assert torch.equal(program.run(images), images.flatten(1))


def test_a_device_measured_by_hand_cannot_be_opened(tmp_path: Path) -> None:
    device = device_with(run=None, times=None)
    with pytest.raises(QuadranasError, match="is measured by hand") as caught:
        open_backend(device, tmp_path)
    assert "--probes" in caught.value.hint


# A real tool


def test_benchmark_app_times_files(tmp_path: Path) -> None:
    """OpenVINO's own program, which prints its times in us or ms."""
    pytest.importorskip("openvino")
    tool = which("benchmark_app", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("this package of OpenVINO has no benchmark_app")
    device = device_with(
        tool="benchmark_app 1",
        format="openvino",
        run=[
            *(tool, "-m", "{file}", "-d", "CPU", "-api", "sync", "-niter", "{repeats}"),
            *("-hint", "none", "-nthreads", "{threads}", "-infer_precision", "f32"),
        ],
        times={"pattern": "Median: +([0-9.]+) (?P<unit>us|ms|s)$"},
        output_file=None,
    )
    with closing(open_backend(device, tmp_path)) as backend:
        program = backend.compile(chain_probe([REFERENCE_OP]), (1, 32, 56, 56))
        (ms,) = CheckedReference(program, device).time_ms(20)
        assert 0.01 < ms < 300
        assert backend.provenance().settings["format"] == "openvino"
