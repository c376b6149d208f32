"""pareto: fronts of accuracy against latency over a trained supernet."""

import json
import shutil
from pathlib import Path

import pytest

import quadranas
from quadranas.latency.table_files import find_table
from quadranas.runs.fronts import load_fronts
from quadranas.space.space_file import load_space
from quadranas.training.searched import open_searched
from tests.command_line import call, contents


@pytest.fixture
def here(tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_networks_are_judged_for_every_device() -> None:
    options = ("--device", "cpu", "--device", "vpu", "--points", "3", "--candidates", "2")
    outcome = call("pareto", "run", *options, "--json")
    assert outcome.code == 0, outcome.err
    printed = outcome.json()
    assert json.loads(Path("run/pareto.json").read_text("utf-8")) == {
        key: printed[key] for key in ("devices", "networks", "carried")
    }
    fronts = load_fronts(Path("run/pareto.json"))
    assert [device.device for device in fronts.devices] == ["cpu", "vpu"]
    searched = open_searched(Path("run"))
    evaluator = searched.evaluator(searched.supernet())
    for network in fronts.networks:
        choices = searched.space.choices_of(searched.space.architecture(network.choices))
        assert network.accuracy == evaluator.accuracy(choices)
        for device, latency_ms in network.latencies_ms.items():
            table = find_table(searched.space, device)
            assert latency_ms == table.predict_ms(searched.space.architecture(choices))
    assert len(fronts.carried) == 6
    assert "Accuracy against latency on vpu" in Path("run/report.html").read_text("utf-8")
    shown = call("pareto", "run", *options)
    assert shown.code == 0, shown.err
    for words in ("latency [ms]", "carried to", "networks judged on held-out images"):
        assert words in shown.out
    assert load_fronts(Path("run/pareto.json")) == fronts


def test_a_search_leaves_the_front_of_its_device(finished_run: Path) -> None:
    fronts = load_fronts(finished_run / "pareto.json")
    assert [device.device for device in fronts.devices] == ["cpu"]
    assert fronts.carried == ()
    result = quadranas.open_run(finished_run)
    assert isinstance(result, quadranas.SearchResult)
    judged = [(n.latencies_ms["cpu"], n.accuracy) for n in fronts.networks]
    assert (result.predicted_ms, result.inherited_accuracy) in judged
    low, high = (fronts.devices[0].min_ms, fronts.devices[0].max_ms)
    assert (
        min(judged)[0]
        == low
        == find_table(load_space("toy"), "cpu").predict_ms(
            load_space("toy").extreme(find_table(load_space("toy"), "cpu").op_ms, largest=False)
        )
    )
    assert all(low <= ms <= high for ms, _ in judged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "host"), "no latency table of device 'host'"),
        (("--device", "vpu", "--device", "vpu"), "device 'vpu' is named twice"),
        (("--device", "vpuu"), "unknown device 'vpuu'"),
        (("--points", "1"), "'--points'"),
    ],
)
@pytest.mark.usefixtures("here")
def test_faults_are_one_message_and_change_nothing(options: tuple[str, ...], message: str) -> None:
    before = contents(Path("run"))
    outcome = call("pareto", "run", *options, "--json")
    assert outcome.code == 2
    assert message in outcome.json()["error"]
    assert contents(Path("run")) == before


@pytest.mark.usefixtures("here")
def test_images_that_are_gone_are_named(pictures: Path) -> None:
    config = Path("run/config.yaml")
    config.write_text(config.read_text("utf-8").replace(str(pictures), "/nowhere"), "utf-8")
    outcome = call("pareto", "run", "--json")
    assert outcome.code == 2
    assert "the images of the search are no longer at /nowhere" in outcome.json()["error"]
