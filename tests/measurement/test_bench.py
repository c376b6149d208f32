"""The bench: what is timed on it."""

import pytest

from quadranas.errors import QuadranasError
from quadranas.measurement.bench import Bench
from quadranas.measurement.plan import Plan
from quadranas.reporter import Reporter
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
