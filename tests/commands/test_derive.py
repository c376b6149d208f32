"""derive: the same supernet for another device and budget, with the weights it trained."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from quadranas.commands.derive import derive
from quadranas.deployment.target import ExportOptions, find_target
from quadranas.errors import QuadranasError
from quadranas.latency.device import Reach, load_device
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import find_table, load_table
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_weights
from quadranas.runs.config_file import read_config_file
from quadranas.runs.results import DeriveResult
from quadranas.runs.run_folder import RunFolder
from quadranas.space.architecture import load_architecture
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space
from quadranas.strategies.limits import MIN_USE
from quadranas.strategies.scores import load_scores
from quadranas.supernet.supernet import build_supernet
from tests.command_line import call, listing
from tests.killing import Moment, killed

DEVICES = ("cpu", "gpu", "vpu")


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return load_space("toy").with_num_classes(2)


def all_latencies(space: SearchSpace, table: LatencyTable) -> list[float]:
    """Of every network of a small space, fastest first."""
    names, options = [], []
    for block in space.blocks:
        if not block.is_fixed:
            names.append(block.name)
            choices: list[Any] = list(product(*(range(len(s.candidates)) for s in block.slots)))
            options.append([*choices, None] if block.optional else choices)
    return sorted(
        table.predict_ms(space.architecture(dict(zip(names, picked, strict=True))))
        for picked in product(*options)
    )


def run_derive(run: Path, device: str, output: Path, **limits: Any) -> DeriveResult:
    budget = f"{limits.pop('budget_ms')!r}ms"
    return derive(run, device=device, budget=budget, output=output, **limits)


@pytest.mark.parametrize("device", DEVICES)
def test_the_budget_is_kept_and_used(
    tmp_path: Path, finished_run: Path, space: SearchSpace, device: str
) -> None:
    """Against every network of the space: at least 90 % of what can be used is used."""
    latencies = all_latencies(space, find_table(space, device))
    low, high = latencies[0], latencies[-1]
    for number, part in enumerate((0.0, 0.1, 0.35, 0.6, 0.85, 0.999)):
        budget_ms = low + part * (high - low)
        result = run_derive(finished_run, device, tmp_path / str(number), budget_ms=budget_ms)
        slowest = max(ms for ms in latencies if ms <= budget_ms)
        usable = budget_ms if slowest >= MIN_USE * budget_ms else slowest
        assert MIN_USE * usable <= result.predicted_ms <= budget_ms
        assert result.accuracy is None
        assert (result.device, result.budget_ms) == (device, budget_ms)


def test_a_budget_above_every_network_gives_what_the_gates_prefer(
    tmp_path: Path, finished_run: Path, space: SearchSpace
) -> None:
    result = run_derive(finished_run, "cpu", tmp_path / "derived", budget_ms=1e6)
    scores = load_scores(finished_run / "gates.json", space)
    assert scores.score(space.choices_of(load_architecture(result.architecture))) == 0


def test_the_search_s_own_question_has_the_same_answer(tmp_path: Path, finished_run: Path) -> None:
    run_derive(finished_run, "cpu", tmp_path / "again", budget_ms=0.8)
    again = load_architecture(tmp_path / "again" / "architecture.json")
    assert again == load_architecture(finished_run / "architecture.json")
    inherited = load_file(finished_run / "inherited.safetensors")
    weights = load_file(tmp_path / "again" / "subnet.safetensors")
    assert set(weights) == set(inherited)
    assert all(torch.equal(weights[name], inherited[name]) for name in weights)


@pytest.mark.parametrize("budget_ms", [0.75, 1.0, 1.3])
def test_the_network_computes_what_its_path_computes(
    tmp_path: Path, finished_run: Path, space: SearchSpace, budget_ms: float
) -> None:
    run_derive(finished_run, "vpu", tmp_path / "derived", budget_ms=budget_ms)
    architecture = load_architecture(tmp_path / "derived" / "architecture.json")
    network = build_subnet(architecture).eval()
    load_weights(network, tmp_path / "derived" / "subnet.safetensors")
    supernet = build_supernet(space, seed=99, nested=True).eval()
    supernet.load_state_dict(load_file(finished_run / "supernet.safetensors"))
    supernet.set_choices(space.choices_of(architecture))
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images), supernet(images))


def test_limits_hold(tmp_path: Path, finished_run: Path) -> None:
    free = run_derive(finished_run, "cpu", tmp_path / "free", budget_ms=1.0)
    limits = {"max_params": free.params - 1, "max_macs": free.macs - 1}
    bound = run_derive(finished_run, "cpu", tmp_path / "bound", budget_ms=1.0, **limits)
    assert bound.params < free.params
    assert bound.macs < free.macs


def test_other_verbs_take_the_folder(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "run")
    made = call("derive", "run", "--device", "vpu", "--budget", "1 ms", "--json")
    assert made.code == 0, made.err
    folder = made.json()["run"]
    assert folder == "run/derived/vpu-1ms"
    assert sorted(path.name for path in Path(folder).iterdir()) == [
        "architecture.json",
        "config.yaml",
        "preprocessing.json",
        "result.json",
        "subnet.safetensors",
        "table.json",
    ]
    assert json.loads(Path(folder, "result.json").read_text("utf-8")) == made.json()
    tested = call("eval", folder, "--json")
    assert tested.json()["num_images"] == 8
    trained = call("train", folder, "--epochs", "1", "--json", "--output", "trained")
    assert trained.code == 0, trained.err
    assert trained.json()["params"] == made.json()["params"]
    refused = call("search", "--resume", "--output", folder, "--json")
    assert refused.code == 2
    assert refused.json() == {
        "error": f"{folder} was written by `quadranas derive` and holds no run of "
        "`quadranas search`",
        "hint": f"Train its network with: quadranas train {folder}",
    }


def test_the_run_s_own_table_counts_for_its_device(tmp_path: Path, finished_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    table = json.loads((run / "table.json").read_text(encoding="utf-8"))
    table["header"]["scale"] = 2.0
    (run / "table.json").write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(QuadranasError, match=r"its reachable range is 1\.13 ms to 2\.17 ms"):
        run_derive(run, "cpu", tmp_path / "cpu", budget_ms=0.8)
    assert run_derive(run, "vpu", tmp_path / "vpu", budget_ms=0.8).predicted_ms <= 0.8
    outcome = call(
        *("derive", run, "--device", "vpu", "--budget", "0.8ms", "--output", tmp_path / "x"),
        *("--table", run / "table.json"),
    )
    assert outcome.code == 2
    assert "was made for device 'cpu', not for 'vpu'" in outcome.err


def test_a_device_that_is_not_shipped_is_written_beside_the_network(
    tmp_path: Path, finished_run: Path
) -> None:
    own = load_device("vpu").configured(title="my own")
    for device, name in ((own, "own"), (load_device("vpu"), "shipped")):
        derive(finished_run, device=device, budget="1ms", output=tmp_path / name)
    content = read_config_file(tmp_path / "own" / "config.yaml").keys
    assert content["device"] == str(tmp_path / "own" / "device.yaml")
    assert load_device(content["device"]) == own
    assert read_config_file(tmp_path / "shipped" / "config.yaml").keys["device"] == "vpu"
    assert not (tmp_path / "shipped" / "device.yaml").exists()


def test_the_device_of_another_run_is_read_from_its_folder(
    tmp_path: Path, finished_run: Path
) -> None:
    other, new = tmp_path / "other", tmp_path / "new"
    other.mkdir()
    command = ("derive", finished_run, "--device", other, "--budget", "1.2ms", "--output", new)
    refused = call(*command)
    assert refused.code == 2
    assert f"{other} records no device that its network was found for" in refused.err
    mine = load_device("cpu").configured(name="mine", rpc="pi:9090")
    mine.save(other / "device.yaml")
    refused = call(*command)
    assert refused.code == 2
    assert "no latency table of device 'mine' for space 'toy'" in refused.err
    assert f"build-lut --device {other}/device.yaml --space toy" in refused.err
    table = load_table(finished_run / "table.json")
    header = table.header.model_copy(update={"device": "mine", "scale": 2.0})
    LatencyTable(header=header, entries=table.entries).save(other / "table.json")
    outcome = call(*command, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["device"] == "mine"
    assert load_table(new / "table.json").header.scale == 2
    assert load_device(new / "device.yaml") == mine.without_reach()  # nothing to be contacted
    assert read_config_file(new / "config.yaml").keys["device"] == str(new / "device.yaml")
    of_shipped = call(*command[:3], finished_run, *command[4:6], "--output", tmp_path / "cpu")
    assert of_shipped.code == 0, of_shipped.err
    assert read_config_file(tmp_path / "cpu" / "config.yaml").keys["device"] == "cpu"


def test_an_interrupted_derive_leaves_nothing(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quadranas.runs.run_folder.RunFolder.write_result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_derive(finished_run, "cpu", tmp_path / "new", budget_ms=0.8)
    assert listing(tmp_path) == []


def test_a_killed_derive_is_simply_repeated(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("derive", finished_run, "--device", "cpu", "--budget", "0.8ms", "--output", "new")
    killed(Moment(RunFolder, "write_result"), *command)
    assert listing(Path())[:2] == [".new.lock", ".new.tmp"]
    assert not Path("new").exists()
    assert call(*command).code == 0
    assert Path("new/result.json").is_file()
    assert [path.name for path in Path().iterdir()] == ["new"]


def test_an_empty_folder_may_be_the_output(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    outcome = call("derive", finished_run, "--device", "cpu", "--budget", "1ms", "--output", ".")
    assert outcome.code == 0, outcome.err
    assert "result.json" in listing(tmp_path / "here")
    assert listing(tmp_path) == ["here", *(f"here/{name}" for name in listing(Path()))]


def test_an_unfinished_run_says_how_to_finish_it(tmp_path: Path, finished_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "supernet.safetensors").unlink()
    with pytest.raises(QuadranasError, match=r"supernet\.safetensors is missing\nName the folder"):
        run_derive(run, "cpu", tmp_path / "new", budget_ms=0.8)
    (run / "result.json").unlink()
    with pytest.raises(QuadranasError, match=f"Finish it with: .* --resume --output {run}"):
        run_derive(run, "cpu", tmp_path / "new", budget_ms=0.8)


def test_torn_weights_are_named(tmp_path: Path, finished_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "supernet.safetensors").write_bytes(b"torn")
    with pytest.raises(QuadranasError, match=r"cannot read weights .*supernet\.safetensors"):
        run_derive(run, "cpu", tmp_path / "new", budget_ms=0.8)
    assert not (tmp_path / "new").exists()


BOARD = """
name: board
title: a board
precision: fp32
threads: 1
analytic:
  runtime: test
  fitted_to: nothing
  expected_error: unknown
  gmacs_per_s: {conv: 10, pointwise: 10, depthwise: 10, linear: 10}
  bandwidth_gb_per_s: 10
  overhead_us: 10
"""


def test_a_device_file_that_was_edited_gets_no_old_latencies(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("board.yaml").write_text(BOARD, encoding="utf-8")
    options = ("--device", "board.yaml", "--budget", "1ms", "--json")
    assert call("build-lut", "--device", "board.yaml", "--space", "toy").code == 0
    assert call("derive", finished_run, *options, "--output", "first").code == 0
    slower = BOARD.replace("fp32", "fp16").replace("threads: 1", "threads: 4")
    Path("board.yaml").write_text(slower.replace("us: 10", "us: 100"), encoding="utf-8")
    differences = (
        "other conditions than those of device 'board': precision fp32, not fp16; "
        "threads 1, not 4; model.overhead_us 10.0, not 100.0"
    )
    for command in (
        ("derive", finished_run, *options, "--output", "x"),
        ("derive", finished_run, *options, "--output", "x", "--table", "first/table.json"),
        ("spaces", "toy", "--device", "board.yaml", "--json"),
        ("search", *options, "--space", "toy", "--output", "x"),
    ):
        refused = call(*command)
        assert refused.code == 2
        assert differences in refused.json()["error"]
        assert "quadranas build-lut --device board.yaml --space toy" in refused.json()["hint"]
    assert not Path("x").exists()
    (known,) = call("devices", "board.yaml", "--json").json()["devices"]
    assert known["tables"] == {}
    assert call("build-lut", "--device", "board.yaml", "--space", "toy").code == 0
    slow = call("derive", finished_run, *options, "--output", "x")
    assert "no network of space 'toy' keeps 1.00 ms" in slow.json()["error"]


def test_a_run_reads_nothing_outside_its_folder(tmp_path: Path, finished_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "space.yaml").write_text("extends: ../secret.yaml\nname: own\n", encoding="utf-8")
    with pytest.raises(QuadranasError, match=r"space\.yaml: extends: the space of a run folder"):
        run_derive(run, "cpu", tmp_path / "cpu", budget_ms=0.8)
    shutil.copy(finished_run / "space.yaml", run)
    (run / "metrics.jsonl").rename(tmp_path / "metrics.jsonl")
    (run / "metrics.jsonl").symlink_to(tmp_path / "metrics.jsonl")
    for command in (
        ("derive", run, "--device", "cpu", "--budget", "0.8ms", "--output", tmp_path / "cpu"),
        ("report", run),
        ("eval", run),
        ("train", run, "--output", tmp_path / "trained"),
        ("search", "--resume", "--output", run),
    ):
        refused = call(*command, "--json")
        assert refused.code == 2
        assert f"{run}/metrics.jsonl is a link out of {run}" in refused.json()["error"]


def test_a_run_starts_and_contacts_nothing(tmp_path: Path, finished_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "result.json").unlink()
    device = load_device("vpu").configured(name="cpu", worker_python=str(tmp_path / "evil"))
    device.save(run / "device.yaml")
    config = read_config_file(run / "config.yaml").keys | {"device": str(run / "device.yaml")}
    RunFolder(run).write_config(config)
    refused = call("search", "--resume", "--output", run, "--json")
    assert refused.code == 2
    assert (
        "is reached through worker_python, and a run folder never chooses"
        in refused.json()["error"]
    )
    assert refused.json()["hint"] == f"Name the device again: --device {run}/device.yaml"
    named = call("search", "--resume", "--output", run, "--device", run / "device.yaml", "--json")
    assert "under other conditions than those of device 'cpu'" in named.json()["error"]


def test_an_architecture_names_no_files(tmp_path: Path, finished_run: Path) -> None:
    content = json.loads((finished_run / "architecture.json").read_text(encoding="utf-8"))
    path = tmp_path / "architecture.json"
    path.write_text(json.dumps(content | {"space": "../../secret"}), encoding="utf-8")
    with pytest.raises(QuadranasError, match="space: String should match pattern"):
        load_architecture(path)
    load_device("vpu").configured(worker_python="evil").save(tmp_path / "evil.yaml")
    content["provenance"]["device"] = str(tmp_path / "evil.yaml")
    path.write_text(json.dumps(content), encoding="utf-8")
    target = find_target(ExportOptions(), load_architecture(path))
    assert (target.device.name, target.device.reach) == ("host", Reach())
