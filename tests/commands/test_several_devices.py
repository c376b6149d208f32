"""One network that keeps budgets on several devices, and limits besides latency."""

import json
import shutil
from pathlib import Path

import pytest

import quadranas
from quadranas.deployment.latency import find_prediction_table
from quadranas.latency.device import load_device
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import find_table, load_table
from quadranas.runs.config_file import read_config_file
from quadranas.runs.records import read_epochs
from quadranas.runs.results import DeriveResult, SearchResult
from quadranas.runs.run_folder import RunFolder
from quadranas.space.architecture import load_architecture
from quadranas.space.footprint import peak_bytes, weight_bytes
from quadranas.space.space_file import load_space
from tests.command_line import call, contents, listing
from tests.killing import Moment, killed

BUDGETS = {"cpu": 0.85, "vpu": 0.95, "gpu": 0.6}
SEARCH = ("search", "--device", "cpu", "--budget", "0.85ms", "--space", "toy")
ALSO = ("--also", "vpu=0.95ms", "--also", "gpu=600us")


def check_all_kept(folder: Path, result: DeriveResult) -> None:
    """The tables decide, not the result: every budget is kept."""
    space = load_space("toy").with_num_classes(2)
    network = load_architecture(folder / "architecture.json")
    assert {one.device: one.budget_ms for one in result.latencies} == BUDGETS
    for one in result.latencies:
        table = find_table(space, one.device)
        assert one.predicted_ms == table.predict_ms(network) <= one.budget_ms
        assert load_table(one.table.path).header == table.header
    for device in ("vpu", "gpu"):
        assert network.provenance[f"budget_ms.{device}"] == BUDGETS[device]
    assert result.missed == ""


@pytest.mark.parametrize("verb", ["derive", "explore"])
def test_one_network_keeps_all_budgets(tmp_path: Path, finished_run: Path, verb: str) -> None:
    more = ("--strategy", "random", "--trials", "5") if verb == "explore" else ()
    outcome = call(
        *(verb, finished_run, "--device", "cpu", "--budget", "0.85ms", *ALSO, *more),
        *("--output", tmp_path / "new"),
    )
    assert outcome.code == 0, outcome.err
    assert "budget 950 us on vpu; reachable with space toy: 741 us to 1.37 ms" in outcome.err
    assert " of 0.95 ms on vpu\nlatency table: analytic (Intel Movidius" in outcome.out
    result = quadranas.open_run(tmp_path / "new")
    assert isinstance(result, DeriveResult)
    check_all_kept(tmp_path / "new", result)
    assert "devices/vpu/table.json" in listing(tmp_path / "new")
    also = read_config_file(tmp_path / "new" / "config.yaml").keys["also"]
    assert also == ["vpu=0.95ms", "gpu=600us"]


def test_the_second_budget_binds(tmp_path: Path, finished_run: Path) -> None:
    """Alone, the network for the cpu exceeds it."""
    space = load_space("toy").with_num_classes(2)
    table = find_table(space, "vpu")
    alone = quadranas.derive(finished_run, device="cpu", budget="1ms", output=tmp_path / "alone")
    alone_ms = table.predict_ms(load_architecture(alone.architecture))
    both = quadranas.derive(
        *(finished_run,),
        device="cpu",
        budget="1ms",
        also=[f"vpu={0.95 * alone_ms!r}ms"],
        output=tmp_path / "both",
    )
    assert both.also[0].predicted_ms <= 0.95 * alone_ms < alone_ms


def test_a_search_trains_for_all_budgets_and_resumes(
    tmp_path: Path, small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = load_device("vpu").configured(name="own")
    own.save(tmp_path / "own.yaml")
    space = load_space("toy")
    table = find_table(space, "vpu")
    header = table.header.model_copy(update={"device": "own"})
    LatencyTable(header=header, entries=table.entries).save(
        tmp_path / "latency_tables" / "toy" / "own.json"
    )
    often = small_config.read_text("utf-8") + "checkpoint_seconds: 0\n"
    Path("small.yaml").write_text(often, encoding="utf-8")
    also = ("--also", "own.yaml=0.95ms", "--also", "gpu=600us")
    command = (*SEARCH, *also, "--config", "small.yaml", "--quiet", "--output")
    outcome = call(*command, "whole", "--json")
    assert outcome.code == 0, outcome.err
    result = quadranas.open_run("whole")
    assert isinstance(result, SearchResult)
    assert {one.device: one.budget_ms for one in result.also} == {"own": 0.95, "gpu": 0.6}
    for one in result.latencies:
        assert one.predicted_ms <= one.budget_ms
    assert load_device(tmp_path / "whole" / "devices" / "own" / "device.yaml") == own
    epochs, _ = read_epochs(Path("whole/metrics.jsonl"))
    searched = [epoch for epoch in epochs if epoch.phase == "search"]
    assert searched
    assert all(epoch.budget_use is not None for epoch in searched)
    page = Path("whole/report.html").read_text("utf-8")
    assert "toy on cpu within 850 us and on own within 950 us and on gpu within 600 us" in page
    assert "predicted latency on own (analytic)" in page
    # The original table is gone: a resumed run has a copy.
    killed(Moment(RunFolder, "save_checkpoint", nth=4), *command, "stopped")
    shutil.rmtree("latency_tables")
    refused = call("search", "--resume", "--output", "stopped", "--also", "gpu=600us", "--quiet")
    assert "the run has also" in refused.err
    again = call("search", "--resume", "--output", "stopped", *also, "--quiet")
    assert again.code == 0, again.err
    skipped = {"checkpoints", "conditions.json", "tensorboard"}
    whole, stopped = (
        {
            name: data
            for name, data in contents(Path(run)).items()
            if name.split("/")[0] not in skipped
        }
        for run in ("whole", "stopped")
    )
    assert {name for name in whole if whole[name] != stopped[name]} <= {
        *("result.json", "config.yaml"),
    }


def test_what_is_made_from_the_network_knows_all_devices(
    tmp_path: Path, finished_run: Path
) -> None:
    derived = quadranas.derive(
        finished_run, device="cpu", budget="0.85ms", also=["vpu=0.95ms"], output=tmp_path / "new"
    )
    trained = quadranas.train(derived.run, epochs=1, output=tmp_path / "trained")
    network = load_architecture(trained.architecture)
    place = tmp_path / "trained" / "devices" / "vpu" / "table.json"
    changed = json.loads(place.read_text("utf-8"))
    changed["header"]["scale"] = 2.0
    place.write_text(json.dumps(changed), encoding="utf-8")
    table = find_prediction_table(network, load_device("vpu"), trained.run, None)
    assert isinstance(table, LatencyTable)
    assert table.header.scale == 2.0  # that of the run folder


def test_limits_on_size_and_memory_are_kept(tmp_path: Path, finished_run: Path) -> None:
    free = quadranas.derive(finished_run, device="cpu", budget="1ms", output=tmp_path / "free")
    assert free.weight_bytes is not None
    assert free.memory_bytes is not None
    outcome = call(
        *("derive", finished_run, "--device", "cpu", "--budget", "1ms", "--json"),
        *("--max-size", f"{free.weight_bytes - 1}", "--max-memory", "14.4KB"),
        *("--output", tmp_path / "bound"),
    )
    assert outcome.code == 0, outcome.err
    ops = list(load_architecture(tmp_path / "bound" / "architecture.json").ops())
    bound = outcome.json()
    assert bound["weight_bytes"] == sum(map(weight_bytes, ops)) < free.weight_bytes
    assert bound["memory_bytes"] == max(map(peak_bytes, ops)) <= 14_400


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (("--also", "vpu"), "cannot read the budget on a further device 'vpu'", "DEVICE=BUDGET"),
        (("--also", "vpu=3"), "the budget '3' has no unit", "250us"),
        (("--also", "vpuu=3ms"), "unknown device 'vpuu'", ".yaml file"),
        (("--also", "cpu=3ms"), "device 'cpu' has two budgets", "--also for each other"),
        (("--also", "vpu=3ms", "--also", "vpu=4ms"), "'vpu' has two budgets", "one budget"),
        (("--also", "host=3ms"), "no latency table of device 'host'", "build-lut --device host"),
        (
            ("--also", "vpu=0.5ms"),
            "no network of space 'toy' keeps 500 us on device 'vpu'",
            "nearest feasible budget is 741us",
        ),
        (("--max-size", "many"), "cannot read the size 'many'", "512KiB"),
        (
            ("--max-memory", "10B"),
            "no network of space 'toy' has at most 10 B of activations",
            "--max-memory 14336B",
        ),
        (("--candidates", "500"), "500 candidates are more than the 400 networks", "at most"),
        (("--candidates", "400"), "400 candidates are more than the ", "or higher limits"),
    ],
)
def test_faults_are_one_message(
    tmp_path: Path, finished_run: Path, options: tuple[str, ...], message: str, hint: str
) -> None:
    outcome = call(
        *("derive", finished_run, "--device", "cpu", "--budget", "0.6ms", "--json"),
        *options,
        *("--output", tmp_path / "new"),
    )
    assert outcome.code == 2
    assert message in outcome.json()["error"]
    assert hint in outcome.json()["hint"]
    assert listing(tmp_path) == []


def test_a_search_refuses_contradictions_before_it_writes(
    tmp_path: Path, small_config: Path
) -> None:
    outcome = call(
        *("search", "--device", "cpu", "--budget", "567us", "--space", "toy", "--json"),
        *("--max-macs", "100000", "--also", "vpu=1ms", "--candidates", "300"),
        *("--config", small_config, "--output", tmp_path / "new"),
    )
    assert outcome.code == 2
    assert "300 candidates are more than the" in outcome.json()["error"]
    assert listing(tmp_path) == []
