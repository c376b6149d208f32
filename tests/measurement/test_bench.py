"""The bench: what is timed on it."""

import pytest

from quadranas.errors import QuadranasError
from quadranas.latency.table import TableHeader
from quadranas.latency.table_files import load_table
from quadranas.measurement.bench import Bench, warn_of_drift
from quadranas.measurement.plan import Plan
from quadranas.measurement.summary import Timings
from quadranas.reporter import Reporter
from tests.command_line import CHECKOUT
from tests.measuring import ScriptedBackend, ScriptedProgram, board


def test_compiled_programs_are_timed_as_they_are() -> None:
    bench = Bench(board(), ScriptedBackend(lambda *_: 1.0))
    programs = {"fast": ScriptedProgram(2.0), "slow": ScriptedProgram(3.0)}
    timings = bench.time(programs, Reporter(quiet=True), Plan(num_rounds=3, repeats=2))
    latencies = {name: timing.latency_ms for name, timing in timings.programs.items()}
    assert latencies == {"fast": 2.0, "slow": 3.0}
    assert timings.reference_ms == 1.0
    assert [program.calls for program in programs.values()] == [3, 3]


def test_an_emulated_device_is_not_measured() -> None:
    with pytest.raises(QuadranasError, match=r"'board' is emulated \(a script\)") as caught:
        Bench(board(), ScriptedBackend(lambda *_: 1.0, emulated=True))
    assert caught.value.hint == "Measure on a real device."


@pytest.mark.parametrize(
    ("lost", "dropped", "warned"),
    [(0.0, 0.0, True), (0.0, "unknown", True), (0.5, 0.0, False), (0.0, 0.5, False)],
)
def test_the_speed_of_a_busy_machine_is_not_judged(
    host_header: TableHeader,
    capsys: pytest.CaptureFixture[str],
    lost: float,
    dropped: float | str,
    warned: bool,
) -> None:
    """Neither when it is busy now, nor if its table was measured when it was."""
    assert host_header.measurement is not None
    changes = {"dropped": dropped, "reference_ms": 2.0}
    measurement = host_header.measurement.model_copy(update=changes)
    header = host_header.model_copy(update={"measurement": measurement})
    timings = Timings({}, 1.0, 9, 0, 0.0, 0.0, dropped=lost)
    with Reporter(quiet=True) as reporter:
        warn_of_drift(header, timings, reporter)
    assert ("50% faster now" in " ".join(capsys.readouterr().err.split())) == warned


@pytest.fixture(scope="module")
def host_header() -> TableHeader:
    """The header of a measured table of version 0.1.0, which knows nothing about lost calls."""
    header = load_table(CHECKOUT / "tests/golden/0.1.0/host-table.json").header
    assert header.measurement is not None
    assert header.measurement.dropped == "unknown"
    return header
