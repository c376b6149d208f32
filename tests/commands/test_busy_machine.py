"""A busy machine: tables that cannot be trusted, suspects measured again, promises not judged."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from quadranas.commands.build_lut import build_lut
from quadranas.commands.run import Label, LabelledImage, _busy_note, _labelled
from quadranas.commands.validate_lut import fresh_networks
from quadranas.deployment.latency import measured
from quadranas.errors import PromiseMissedError, QuadranasError
from quadranas.latency.processor import CallTimes
from quadranas.latency.table_files import PricedTable, load_table
from quadranas.measurement.lut_entries import (
    COPIES,
    NUM_BASELINES,
    baseline_network,
    calibration_networks,
)
from quadranas.measurement.probes import chain_probe, network_probe, preserves_shape
from quadranas.measurement.summary import REFERENCES_PER_ROUND, Timing
from quadranas.measurement.verification import measure_network
from quadranas.reporter import Reporter
from quadranas.space.operation import OpSpec
from quadranas.space.space_file import load_space
from tests.command_line import call, listing
from tests.measuring import Machine, ScriptedBackend, ScriptedProgram, board, measured_by

SPACE = load_space("toy")
ROUNDS = 4
NEEDED = tuple(
    dict.fromkeys(s for n in (10, 100, 1000) for s in SPACE.with_num_classes(n).specs())
)
Lost = Callable[[nn.Module, Sequence[int]], float]


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> PricedTable:
    """A table of the undisturbed machine. Not to be changed."""
    path = tmp_path_factory.mktemp("tables") / "table.json"
    machine = Machine(NEEDED, calibration_networks(SPACE))
    with pytest.MonkeyPatch.context() as patch:
        measured_by(ScriptedBackend(machine.network_ms), patch)
        build_lut("toy", device=board(), rounds=ROUNDS, output=path)
    return PricedTable(path, load_table(path))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    board().save(tmp_path / "board.yaml")


@pytest.fixture
def machine() -> Machine:
    return Machine(NEEDED, (*calibration_networks(SPACE), *fresh_networks(SPACE, 3, 0)))


def inserted(spec: OpSpec) -> nn.Module:
    """The program that the entry of an operation that preserves its shape is computed from."""
    ops = list(baseline_network(SPACE).ops())
    place = next(
        i
        for i, op in enumerate(ops)
        if (op.out_channels, op.out_resolution) == (spec.in_channels, spec.resolution)
    )
    return chain_probe([*ops[: place + 1], *[spec] * COPIES, *ops[place + 1 :]])


SUSPECT = next(spec for spec in NEEDED if preserves_shape(spec))


def losing(*networks: nn.Module) -> Lost:
    """These networks lose 43 % of their time in every call, others nothing."""
    names = set(map(str, networks))
    return lambda network, shape: 0.43 if str(network) in names else 0.0


BUILD = (
    *("build-lut", "--device", "board.yaml", "--space", "toy"),
    *("--rounds", str(ROUNDS), "--output", "table.json"),
)
VALIDATE = (
    *("validate-lut", "--device", "board.yaml", "--space", "toy", "--table", "table.json"),
    *("--networks", "3", "--rounds", str(ROUNDS)),
)
AGAIN = f"quadranas {' '.join(BUILD)} --only-suspect"
REFERENCES = ROUNDS * REFERENCES_PER_ROUND


def test_a_table_of_an_undisturbed_machine_says_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_by(ScriptedBackend(machine.network_ms, lost=losing()), monkeypatch)
    outcome = call(*BUILD)
    assert outcome.code == 0, outcome.err
    quality = "noise 0.0% (95th percentile 0.0%), 0.0% of the calls lost the processor"
    assert quality in outcome.out
    table = load_table("table.json")
    assert table.header.measurement is not None
    assert table.header.measurement.dropped == 0.0
    for entry in table.entries:
        assert entry.noise == pytest.approx(0, abs=1e-9)
        assert entry.p95_ms == pytest.approx(entry.latency_ms)


def test_a_device_that_cannot_tell_says_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_by(ScriptedBackend(machine.network_ms), monkeypatch)
    outcome = call(*BUILD)
    assert outcome.code == 0, outcome.err
    assert "unknown how many calls lost the processor" in outcome.out
    assert '"dropped":"unknown"' in Path("table.json").read_text().replace(" ", "")


def test_entries_of_disturbed_calls_are_measured_again_and_no_others(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = ScriptedBackend(machine.network_ms, lost=losing(inserted(SUSPECT)))
    measured_by(busy, monkeypatch)
    for _ in range(2):  # the timings are kept, so the second time nothing is measured
        outcome = call(*BUILD)
        assert outcome.code == 2
        told = " ".join(outcome.err.split())
        assert "the machine was busy: 1 of" in told
        assert "the table is not saved, the timings are kept in table.json.timings" in told
        assert f"suspect entries: {SUSPECT} (100% of its calls disturbed)" in told
        assert AGAIN in told
        assert listing(Path()) == ["board.yaml", "table.json.timings"]
    quiet = ScriptedBackend(machine.network_ms, lost=losing())
    measured_by(quiet, monkeypatch)
    outcome = call(*BUILD, "--only-suspect")
    assert outcome.code == 0, outcome.err
    assert listing(Path()) == ["board.yaml", "table.json"]
    timed = quiet.timed
    assert len(timed) == 3  # the entry's program, the baseline beside it, and the reference
    assert timed.total() == ROUNDS * (1 + NUM_BASELINES) + REFERENCES
    found = load_table("table.json").latencies_ms
    assert set(found) == set(NEEDED)
    assert found[SUSPECT] == pytest.approx(machine.ops_ms[SUSPECT] + machine.null_ms)


def test_a_large_residual_is_an_error_that_names_suspects(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One program is slow in every other round, on a device that cannot tell why."""
    slow = str(inserted(SUSPECT))

    class Unsteady(ScriptedBackend):
        def compile(self, network: nn.Module, input_shape: Sequence[int]) -> Any:
            program = super().compile(network, input_shape)
            if str(network) != slow:
                return program
            ms = machine.network_ms(network, input_shape)
            return ScriptedProgram([4 * ms, 6 * ms] * 50)

    measured_by(Unsteady(machine.network_ms), monkeypatch)
    outcome = call(*BUILD)
    told = " ".join(outcome.err.split())
    assert outcome.code == 3, told
    assert "the table's residual is" in told
    assert "on the 8 networks of the calibration; accepted: 10.0%" in told
    assert f"suspect entries: {SUSPECT} (noise" in told
    assert AGAIN in told
    assert listing(Path()) == ["board.yaml", "table.json.timings"]
    measured_by(ScriptedBackend(machine.network_ms), monkeypatch)
    outcome = call(*BUILD, "--only-suspect")
    assert outcome.code == 0, outcome.err
    assert load_table("table.json").latencies_ms[SUSPECT] == pytest.approx(
        machine.ops_ms[SUSPECT] + machine.null_ms
    )


def test_a_larger_residual_can_be_accepted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = iter([0.7, 1.3] * 8)
    factors = {str(network_probe(n)): next(ratios) for n in calibration_networks(SPACE)}

    def network_ms(network: nn.Module, shape: Sequence[int]) -> float:
        return machine.network_ms(network, shape) * factors.get(str(network), 1.0)

    measured_by(ScriptedBackend(network_ms), monkeypatch)
    with pytest.raises(PromiseMissedError, match=r"residual is 43.9%.*, network calib.*-7"):
        build_lut("toy", device=board(), rounds=ROUNDS, output="table.json")
    result = build_lut("toy", device=board(), rounds=ROUNDS, output="table.json", max_residual=0.5)
    assert result.quality.startswith("noise 0.0%")


def test_there_must_be_something_suspect(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_by(ScriptedBackend(machine.network_ms), monkeypatch)
    outcome = call(*BUILD, "--only-suspect")
    assert outcome.code == 2
    assert "there is nothing suspect to measure again: table.json.timings does not exist" in (
        " ".join(outcome.err.split())
    )
    with pytest.raises(QuadranasError, match="there is nothing suspect"):
        build_lut("toy", device="cpu", backend="analytic", only_suspect=True)


def test_networks_of_a_validation_are_measured_again_and_no_others(
    machine: Machine, priced: PricedTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    priced.table.save(Path("table.json"))
    worst = fresh_networks(SPACE, 3, 0)[1]
    busy = ScriptedBackend(machine.network_ms, lost=losing(network_probe(worst)))
    measured_by(busy, monkeypatch)
    outcome = call(*VALIDATE)
    assert outcome.code == 2
    told = " ".join(outcome.err.split())
    assert f"1 of 3 networks are not measured: {worst.name}: the machine was busy" in told
    assert "The same command measures these networks again, and no other." in told
    assert load_table("table.json").header.validation is None
    quiet = ScriptedBackend(machine.network_ms, lost=losing())
    measured_by(quiet, monkeypatch)
    outcome = call(*VALIDATE)
    assert outcome.code == 0, outcome.err
    assert quiet.timed.total() == ROUNDS + REFERENCES
    assert load_table("table.json").header.validation is not None


def verified(
    machine: Machine, priced: PricedTable, monkeypatch: pytest.MonkeyPatch, lost: Lost | None
) -> Timing | str:
    """What is measured of a network that takes thrice as long now, and so does all else."""
    architecture = calibration_networks(SPACE)[0]

    def slower_ms(network: nn.Module, shape: Sequence[int]) -> float:
        return 3 * machine.network_ms(network, shape)

    measured_by(ScriptedBackend(slower_ms, lost=lost), monkeypatch)
    network = network_probe(architecture)
    with Reporter(quiet=True) as reporter:
        return measure_network(architecture, network, board(), priced, reporter)


def test_a_network_is_not_measured_on_a_busy_machine(
    machine: Machine,
    priced: PricedTable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nor is the device said to be slower or faster: that would not be known either."""
    network = network_probe(calibration_networks(SPACE)[0])
    found = verified(machine, priced, monkeypatch, losing(network))
    assert isinstance(found, str)
    assert "the machine was busy: 100% of the calls lost the processor" in found
    told = " ".join(capsys.readouterr().err.split())
    assert "warning: the network is not measured: the machine was busy" in told
    assert "slower" not in told
    assert "faster now" not in told


@pytest.mark.parametrize("lost", [None, losing()])
def test_an_undisturbed_network_is_measured(
    machine: Machine,
    priced: PricedTable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lost: Lost | None,
) -> None:
    found = verified(machine, priced, monkeypatch, lost)
    assert isinstance(found, Timing)
    expected_ms = 3 * priced.table.predict_ms(calibration_networks(SPACE)[0])
    assert found.latency_ms == found.p95_ms == pytest.approx(expected_ms)
    assert "board is 200% slower now" in " ".join(capsys.readouterr().err.split())


def test_a_file_is_not_measured_on_a_busy_machine(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    class Busy(ScriptedProgram):
        def time_ms(self, repeats: int) -> list[float]:
            return CallTimes([21.0] * repeats, [9.0] * repeats)

    backend = ScriptedBackend(machine.network_ms)
    with Reporter(quiet=True) as reporter:
        found = measured(backend, board(), {"file": Busy(0)}, reporter)
        assert isinstance(found, str)
        assert "the machine was busy: 100% of the calls" in found
        notes = measured(backend, board(), {"file": ScriptedProgram(12.0)}, reporter)
    assert "the file is not measured: the machine was busy" in (
        " ".join(capsys.readouterr().err.split())
    )
    assert isinstance(notes, dict)
    assert (notes["file"].ms, notes["file"].p50_ms, notes["file"].p95_ms) == (12, 12, 12)
    assert notes["file"].dropped is None


def test_images_whose_calls_were_all_disturbed_are_noted() -> None:
    class Busy(ScriptedProgram):
        def time_ms(self, repeats: int) -> list[float]:
            return CallTimes([21.0] * repeats, [9.0] * repeats)

    labels = (Label(label="a", index=0, probability=1.0),)
    busy = _labelled(Path("a.png"), labels, Busy(0))
    calm = _labelled(Path("b.png"), labels, ScriptedProgram(12.0))
    assert busy == LabelledImage(
        image=Path("a.png"), labels=labels, ms=21.0, p95_ms=21.0, dropped=1.0
    )
    assert (calm.ms, calm.p95_ms, calm.dropped) == (12.0, 12.0, None)
    assert _busy_note([calm]) == []
    (note,) = _busy_note([busy, calm])
    assert note.startswith("the machine was busy: all calls for 1 of 2 images lost the processor")
