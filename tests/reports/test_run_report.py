"""The page about a run: complete, self-contained, safe, reproducible, there from the start."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quadranas.errors import QuadranasError
from quadranas.latency.budget import parse_budget
from quadranas.latency.table import LatencyTable, Measurement
from quadranas.latency.table_files import find_table, load_table
from quadranas.reports.figures import PARTS, plot_curves
from quadranas.reports.run_report import write_report
from quadranas.reports.run_view import RUN_FILES, read_run
from quadranas.runs.fronts import Fronts, fronts_of, load_fronts
from quadranas.runs.records import Epoch
from quadranas.runs.run_folder import RunFolder
from quadranas.space.architecture import load_architecture
from quadranas.space.cost import count_macs, count_params
from quadranas.space.operation import OP_RULES
from quadranas.space.search_space import Choices, SearchSpace
from quadranas.space.space_file import load_space, space_files
from quadranas.strategies.exact import decode
from quadranas.strategies.limits import Limits
from quadranas.strategies.pareto import judged, plan_networks
from quadranas.strategies.scores import BlockScores, GateScores, load_scores

CLASSES = 10
RUNS = {
    "toy": ("vpu", "1ms"),
    "mbconv-mobile": ("cpu", "50ms"),
    "quadranet-mobile": ("vpu", "30ms"),
    "quadranet-tiny": ("gpu", "3ms"),
}


def random_scores(space: SearchSpace, seed: int = 0) -> GateScores:
    rng = np.random.default_rng(seed)

    def logs(count: int) -> tuple[float, ...]:
        drawn = rng.normal(size=count)
        return tuple(float(v) for v in drawn - np.log(np.exp(drawn).sum()))

    blocks = {}
    for block in space.blocks:
        if not block.is_fixed:
            keep, skip = logs(2) if block.optional else (0.0, None)
            slots = tuple(logs(len(slot.candidates)) for slot in block.slots)
            blocks[block.name] = BlockScores(keep=keep, skip=skip, slots=slots)
    return GateScores(space=space.name, space_digest=space.digest, blocks=blocks)


def epoch_line(phase: str, epoch: int, **values: float) -> str:
    line: dict[str, Any] = {"phase": phase, "epoch": epoch, "step": 10 * epoch, "loss": 2 / epoch}
    line |= {"accuracy": 1 - 0.8 / epoch, "gate_loss": None, "gate_accuracy": None}
    line |= {"expected_ms": None, "budget_ms": 1.0, "entropy": None, "skip_rate": None}
    line |= {"latency_weight": None, "learning_rate": 1e-3}
    if phase == "search":
        line |= {"gate_loss": 2.1 / epoch, "gate_accuracy": 1 - 0.9 / epoch, "entropy": 0.5}
        line |= {"expected_ms": 1 + 1 / epoch, "skip_rate": 0.4, "latency_weight": 0.1 * epoch}
    return json.dumps(line | values)


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run folder as a finished search leaves it, made anew at every call."""

    def make(name: str) -> Path:
        run = tmp_path_factory.mktemp(name)
        device, budget = RUNS[name]
        space = load_space(name).with_num_classes(CLASSES)
        table, scores, budget_ms = (
            find_table(space, device),
            random_scores(space),
            parse_budget(budget),
        )
        decoded = decode(space, scores, table, Limits(budget_ms=budget_ms))
        architecture = space.architecture(decoded.choices)
        architecture.save(run / "architecture.json")
        scores.save(run / "gates.json")
        table.save(run / "table.json")
        shutil.copy(space_files()[name], run / "space.yaml")
        (run / "config.yaml").write_text(
            f"device: {device}\nbudget: {budget}\nspace: {name}\ndata: null\nseed: 7\n"
        )
        lines = [epoch_line("warmup", number) for number in (1, 2)]
        lines += [epoch_line("search", number) for number in (1, 2, 3, 4)]
        lines += [epoch_line("finetune", number) for number in (1, 2, 3)]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        result = {
            "run": str(run),
            "architecture": str(run / "architecture.json"),
            "device": device,
            "budget_ms": budget_ms,
            "confidence": None,
            "tolerance": 0.05,
            "predicted_ms": decoded.latency_ms,
            "measured_ms": None,
            "table": {
                "path": "table.json",
                "method": table.header.method,
                "summary": table.header.summary(),
            },
            "params": count_params(architecture),
            "macs": count_macs(architecture),
            "accuracy": 0.8125,
        }
        (run / "result.json").write_text(json.dumps(result))
        return run

    return make


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No matplotlib, which takes nearly all of a report's time."""
    monkeypatch.setattr("quadranas.reports.run_report.plot_curves", lambda *_: [])
    monkeypatch.setattr("quadranas.reports.run_report.plot_front", lambda *_: "<svg></svg>")
    monkeypatch.setattr("quadranas.reports.run_report.plot_blocks", lambda *_: "<svg></svg>")


class Checker(HTMLParser):
    """Collects what must hold of a page: balanced tags, unique ids, text."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(page: str) -> Checker:
    """The page, parsed; fails unless it is well-formed and needs nothing but itself."""
    parser = Checker()
    parser.feed(page)
    parser.close()
    assert page.startswith("<!DOCTYPE html>")
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids)
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', page)) <= set(parser.ids)
    addresses = set(re.findall(r"https?://[^\s\"'<>]*", page))
    assert addresses <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(parser.tags)
    assert "src=" not in page
    assert "@import" not in page
    return parser


def report(run: Path) -> Checker:
    return checked(write_report(run).read_text(encoding="utf-8"))


@pytest.mark.usefixtures("rendered")
@pytest.mark.parametrize("name", RUNS)
def test_the_page_is_complete(make_run: Callable[[str], Path], name: str) -> None:
    run = make_run(name)
    path = write_report(run)
    assert path == run / "report.html"
    assert path.stat().st_size < 1_000_000
    page = checked(path.read_text(encoding="utf-8"))

    device, _ = RUNS[name]
    architecture, table = (
        load_architecture(run / "architecture.json"),
        load_table(run / "table.json"),
    )
    assert f"{name} on {device} within" in page.text
    assert table.header.summary() in page.text
    assert f"{count_params(architecture):,}" in page.text
    assert "81.2 %" in page.text  # of the test images
    assert "Not finished" not in page.text
    for block in load_space(name).blocks:
        assert block.name in page.text
    for title in ("Loss", "Accuracy", "Expected latency", "Gate entropy", "Skip rate"):
        assert title in page.text
    for phase in ("warm-up", "search", "fine-tuning"):
        assert phase in page.text
    assert "seed: 7" in page.text


@pytest.mark.parametrize("name", RUNS)
def test_every_skipped_block_is_an_outline(
    make_run: Callable[[str], Path], plain: None, name: str
) -> None:
    run = make_run(name)
    kept = load_architecture(run / "architecture.json").blocks
    num_skipped = len(load_space(name).blocks) - len(kept)
    assert num_skipped, "the fixture should skip something"
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count("stroke-dasharray=") == num_skipped + 1  # and one in the legend
    assert page.count(": skipped</title>") == num_skipped


@pytest.mark.parametrize("name", RUNS)
def test_blocks_add_up_to_the_prediction(make_run: Callable[[str], Path], name: str) -> None:
    run = read_run(make_run(name))
    assert run.table is not None
    total = sum(sum(block.ms) for block in run.blocks if block.ms) + run.table.header.null_ms
    assert run.predicted_ms == pytest.approx(total)


def write_fronts(run: Path, devices: tuple[str, ...]) -> Fronts:
    """Fronts as a search and `quadranas pareto` leave them, with accuracies made up."""
    space = load_space("toy").with_num_classes(CLASSES)
    tables = [find_table(space, device) for device in devices]
    scores = load_scores(run / "gates.json", space)
    planned = plan_networks(space, scores, tables, Limits(budget_ms=1.0), points=5)

    def made_up(choices: Choices) -> float:
        return min(1.0, count_macs(space.architecture(choices)) / 3e5)

    networks = list(judged(space, tables, planned, made_up))
    fronts = fronts_of(space, tables, networks, 5)
    fronts.save(run)
    return fronts


@pytest.mark.usefixtures("rendered")
def test_the_fronts_show_accuracy_against_latency(make_run: Callable[[str], Path]) -> None:
    run = make_run("toy")
    assert "quadranas pareto RUN --device DEVICE writes it." in report(run).text
    fronts = write_fronts(run, ("vpu", "cpu"))
    page, source = report(run), (run / "report.html").read_text("utf-8")
    assert f"{len(fronts.networks)} networks that the gates prefer for budgets" in page.text
    for device in fronts.devices:
        assert f'aria-label="Accuracy against latency on {device.device}"' in source
        assert f"Device {device.device}; its reachable range is" in page.text
    assert "accuracy with the supernet" in source
    assert page.text.count("carried to") == 1
    assert len(fronts.carried) == source.count("<td>cpu</td><td>vpu</td>") + (
        source.count("<td>vpu</td><td>cpu</td>")
    )


def test_the_chosen_network_is_shown_if_it_was_judged(
    make_run: Callable[[str], Path], plain: None
) -> None:
    run = make_run("toy")
    assert read_run(run).chosen is None
    result = json.loads((run / "result.json").read_text("utf-8"))
    (run / "result.json").write_text(json.dumps(result | {"inherited_accuracy": 0.5}))
    assert read_run(run).chosen == (read_run(run).predicted_ms, 0.5)


def test_fronts_of_unknown_networks_are_refused(make_run: Callable[[str], Path]) -> None:
    run = make_run("toy")
    fronts = write_fronts(run, ("vpu",))
    broken = fronts.devices[0].model_copy(update={"front": (len(fronts.networks),)})
    fronts.model_copy(update={"devices": (broken,)}).save(run)
    with pytest.raises(QuadranasError, match=r"the front of 'vpu' names network \d+, which"):
        load_fronts(run / "pareto.json")
    assert "which is not there or has no latency on it" in report(run).text


@pytest.mark.usefixtures("rendered")
def test_the_same_run_gives_the_same_bytes(
    make_run: Callable[[str], Path], tmp_path: Path
) -> None:
    run = make_run("toy")
    copy = shutil.copytree(run, tmp_path / "elsewhere")
    first = write_report(run).read_bytes()
    assert write_report(copy).read_bytes() == first
    assert write_report(run).read_bytes() == first
    assert str(run).encode() not in first


@pytest.mark.parametrize("name", RUN_FILES)
def test_one_file_is_enough(make_run: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    shutil.copy(make_run("toy") / name, tmp_path)
    page = report(tmp_path)
    for other in {*RUN_FILES, "gates.json"} - {name, "config.yaml", "space.yaml"}:
        if other != "gates.json" or name != "space.yaml":
            assert f"here is no {other}" in page.text


@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.parametrize("content", [None, b'{"torn": ', b"\xff\xfe\x00", b"{}"])
def test_one_file_may_be_missing_or_broken(
    make_run: Callable[[str], Path], plain: None, name: str, content: bytes | None
) -> None:
    run = make_run("toy")
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    page = report(run)
    if content is None:
        assert f"here is no {name}" in page.text
    assert str(run) not in page.text


@pytest.mark.usefixtures("rendered")
def test_a_run_before_its_first_network(make_run: Callable[[str], Path]) -> None:
    run = make_run("toy")
    for name in ("architecture.json", "gates.json", "result.json"):
        (run / name).unlink()
    (run / "metrics.jsonl").write_text(epoch_line("warmup", 1) + "\n" + epoch_line("search", 1))
    page = report(run)
    assert "the last recorded epoch is epoch 1 of search" in page.text
    assert "There is no architecture.json." in page.text
    assert "not tested yet" in page.text
    assert "Expected latency" in page.text


@pytest.mark.usefixtures("rendered")
def test_a_run_that_only_trains(make_run: Callable[[str], Path]) -> None:
    run = make_run("toy")
    for name in ("table.json", "space.yaml", "gates.json"):
        (run / name).unlink()
    (run / "config.yaml").write_text("data: photos/mine\nepochs: 2\n")
    (run / "metrics.jsonl").write_text(epoch_line("train", 1) + "\n" + epoch_line("train", 2))
    result = {"run": "x", "architecture": "x", "params": 1, "macs": 1, "accuracy": 0.75}
    (run / "result.json").write_text(json.dumps(result | {"chance": 0.3}))
    page = report(run)
    assert "mine, 10 classes" in page.text
    assert "75.0 %" in page.text
    assert "which were skipped" not in page.text
    assert "; chance 30.0 %" in page.text
    assert "chance, 30.0 %" in page.text
    (run / "result.json").write_text(json.dumps(result))  # of a version that did not record it
    assert read_run(run).chance is None
    assert "Other budgets" not in page.text


def test_a_training_of_a_derived_network_keeps_its_budget(
    make_run: Callable[[str], Path], plain: None
) -> None:
    run = make_run("toy")
    for name in ("space.yaml", "gates.json", "config.yaml"):
        (run / name).unlink()
    (run / "metrics.jsonl").write_text(epoch_line("train", 1))
    result = {"run": "x", "architecture": "x", "params": 1, "macs": 1, "accuracy": 0.75}
    (run / "result.json").write_text(json.dumps(result))
    architecture = load_architecture(run / "architecture.json")
    derived = {"device": "vpu", "budget_ms": 0.8, "confidence": 0.95}
    architecture.model_copy(update={"provenance": derived}).save(run / "architecture.json")
    page = report(run)
    assert "on vpu within 800 us" in page.text
    assert "of 800 us" in page.text
    assert "with a confidence of 95 %" in page.text


def test_a_prediction_is_not_called_a_measurement(
    make_run: Callable[[str], Path], plain: None
) -> None:
    run = make_run("toy")
    table = load_table(run / "table.json")
    measurement = Measurement(
        **{"hardware": "x", "versions": {}, "settings": {}, "num_rounds": 1, "repeats": 1},
        **{"num_disturbed": 0, "noise": 0.0, "reference_ms": 1.0},
    )
    changes = {"method": "measured", "measurement": measurement}
    header = table.header.model_copy(update=changes)
    LatencyTable(header=header, entries=table.entries).save(run / "table.json")
    page = report(run)
    assert "predicted latency (from a measured table)" in page.text
    assert "predicted latency (measured)" not in page.text


@pytest.mark.usefixtures("rendered")
def test_the_accuracy_is_drawn_beside_that_of_chance() -> None:
    epochs = [Epoch(phase="train", epoch=number, accuracy=0.2) for number in (1, 2)]
    (with_chance,), (without,) = (plot_curves(epochs, None, share) for share in (0.4, None))
    assert "chance, 40.0 %" in with_chance
    assert "chance" not in without


def test_a_torn_line_is_left_out_with_a_note(make_run: Callable[[str], Path], plain: None) -> None:
    run = make_run("toy")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "finetune", "epo')
    assert "in metrics.jsonl, which were skipped: 1." in report(run).text
    assert len(read_run(run).epochs) == 9


def test_an_epoch_written_twice_counts_once(make_run: Callable[[str], Path]) -> None:
    run = make_run("toy")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(epoch_line("search", 4, loss=0.125) + "\n")
    epochs = read_run(run).epochs
    assert [epoch.phase for epoch in epochs] == ["warmup"] * 2 + ["search"] * 4 + ["finetune"] * 3
    assert epochs[5].loss == 0.125


@pytest.mark.usefixtures("rendered")
def test_values_that_are_not_finite_are_left_out(make_run: Callable[[str], Path]) -> None:
    run = make_run("toy")
    folder = RunFolder(run)
    folder.metrics.unlink()
    for number, loss in enumerate((math.nan, math.inf), start=1):
        folder.append_metrics(json.loads(epoch_line("search", number)) | {"loss": loss})
    assert [epoch.loss for epoch in read_run(run).epochs] == [None, None]
    page = report(run)
    assert "cross-entropy" in page.text  # the held-out half has a loss
    figures = plot_curves(read_run(run).epochs[:1], None)
    assert all("nan" not in figure for figure in figures)
    folder.metrics.write_text(epoch_line("search", 1, loss=math.nan), encoding="utf-8")
    assert read_run(run).dropped_lines == 1


@pytest.mark.usefixtures("rendered")
def test_hostile_text_stays_text(make_run: Callable[[str], Path]) -> None:
    evil = "</pre><script>alert('x')</script><b $x^{ & \" ' >"
    run = make_run("toy")
    config: dict[str, Any] = {
        "device": evil,
        "budget": evil,
        "space": evil,
        "data": evil,
        "seed": evil,
    }
    config |= {"command": evil, "train_resolution": evil, "versions": {evil: evil}}
    (run / "config.yaml").write_text(json.dumps(config))
    changes: dict[str, dict[str, Any]] = {
        "architecture.json": {"name": evil, "provenance": {"command": evil}},
        "result.json": {"device": evil, "command": "\ud800"},
    }
    for name, change in changes.items():
        content = json.loads((run / name).read_text()) | change
        (run / name).write_text(json.dumps(content))
    table = json.loads((run / "table.json").read_text())
    for key in ("title", "runtime", "precision", "expected_error", "fitted_to", "command", "date"):
        table["header"][key] = evil
    (run / "table.json").write_text(json.dumps(table))
    page = report(run)
    assert page.text.count(evil) > 10
    assert "script" not in page.tags
    space = (run / "space.yaml").read_text().replace("quadratic_depthwise", '"<script>"')
    (run / "space.yaml").write_text(space)
    assert "script" not in report(run).tags


def test_long_names_are_shortened_in_figures(make_run: Callable[[str], Path]) -> None:
    run = make_run("toy")
    name = "an_extraordinarily_long_name_for_a_stage"
    for file in ("architecture.json", "gates.json", "table.json", "space.yaml"):
        text = (run / file).read_text().replace("stage1", name)
        (run / file).write_text(
            text.replace("  - entry: {kind: patch", f"  - name: {name}\n    entry: {{kind: patch")
        )
    digest = load_space(str(run / "space.yaml")).digest
    for file in ("gates.json", "table.json"):
        old = re.search(r'"space_digest": ?"(\w+)"', (run / file).read_text())
        assert old is not None
        (run / file).write_text((run / file).read_text().replace(old[1], digest))
    page = report(run)
    assert set(read_run(run).faults) == {"pareto.json"}  # which is not there
    assert name[:17] + "…" in page.text


def test_files_of_different_runs_are_told_apart(
    make_run: Callable[[str], Path], plain: None
) -> None:
    run, other = make_run("toy"), make_run("mbconv-mobile")
    shutil.copy(other / "architecture.json", run)
    page = report(run)
    assert "is not in space toy" in page.text
    assert "has no entry for" in page.text


def test_gates_that_do_not_fit_are_refused(make_run: Callable[[str], Path], plain: None) -> None:
    run = make_run("toy")
    space = load_space("toy")
    scores = load_scores(run / "gates.json", space)
    name = "stage1_block1"
    for bad in (
        {**scores.blocks, name: BlockScores(slots=((0.0,), (0.0,)))},
        {**scores.blocks, name: BlockScores(slots=((math.nan, 0.0), (0.0, 0.0)))},
        {key: value for key, value in scores.blocks.items() if key != name},
    ):
        content = scores.model_copy(update={"blocks": bad}).model_dump(mode="json")
        (run / "gates.json").write_text(json.dumps(content).replace("null", "NaN", 1))
        assert "gates.json" in read_run(run).faults
        report(run)


def test_a_network_over_its_budget_is_called_so(
    make_run: Callable[[str], Path], plain: None
) -> None:
    run = make_run("toy")
    result = json.loads((run / "result.json").read_text()) | {"budget_ms": 0.5, "measured_ms": 0.9}
    (run / "result.json").write_text(json.dumps(result))
    page = report(run)
    assert "over the budget" in page.text
    assert "measured latency" in page.text


def test_versions_are_shown_where_recorded(make_run: Callable[[str], Path], plain: None) -> None:
    run = make_run("toy")
    assert "not recorded" in report(run).text
    result = json.loads((run / "result.json").read_text())
    result |= {"versions": {"torch": "1.2.3"}}
    (run / "result.json").write_text(json.dumps(result))
    page = report(run)
    assert "torch 1.2.3" in page.text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuadranasError, match=r"run folder .*nowhere does not exist"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(QuadranasError, match=r"is not a run folder: it has none of config\.yaml"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_kind_of_operation_has_a_part() -> None:
    assert set(PARTS) == set(OP_RULES)


def test_a_report_needs_no_torch() -> None:
    code = (
        "import sys, quadranas.reports.run_report; "
        "print(*sys.modules.keys() & {'torch', 'matplotlib.pyplot'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
