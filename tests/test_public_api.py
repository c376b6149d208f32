"""The public API: what `import quadranas` offers, what it costs, and that it leads on."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import quadranas
from quadranas.cli.app import app
from quadranas.errors import QuadranasError
from quadranas.validation import CommandResult
from tests.command_line import call
from tests.typed_results import parsed

RESULTS = [name for name in quadranas.__all__ if name.endswith("Result")]
OTHER_NAMES = {"eval": "evaluate", "data": "describe_data"}
COMMANDS = {
    command.name: OTHER_NAMES.get(name := str(command.name), name.replace("-", "_"))
    for command in app.registered_commands
}
WITHOUT_FUNCTION = {"devices", "spaces"}


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["quadranas", "quadranas.cli.app"])
def test_importing_it_is_cheap(module: str) -> None:
    heavy = {"torch", "pandas", "pydantic"}
    code = f"import sys, {module}; print(*sys.modules.keys() & {heavy})"
    assert in_a_new_process(code) == ""


@pytest.mark.parametrize("name", quadranas.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(quadranas, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__module__ == quadranas._HOMES[name]
        assert value.__doc__


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse(Path(quadranas.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {
        name.name: node.module
        for node in imports
        for name in node.names
        if name.asname == name.name
    }
    assert seen == quadranas._HOMES


def test_dir_lists_every_public_name() -> None:
    names = in_a_new_process("import quadranas; print(*dir(quadranas))").split()
    assert set(quadranas.__all__) <= set(names)
    with pytest.raises(AttributeError, match="has no attribute 'serch'"):
        _ = quadranas.serch  # type: ignore[attr-defined]


@pytest.mark.parametrize(("command", "name"), COMMANDS.items())
def test_every_command_is_a_function(command: str, name: str) -> None:
    assert (name in quadranas.__all__) != (command in WITHOUT_FUNCTION)


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_frozen(name: str) -> None:
    model = getattr(quadranas, name)
    assert issubclass(model, CommandResult)
    assert model.model_config["frozen"]


def test_a_run_is_opened_in_one_line(finished_run: Path) -> None:
    result = quadranas.open_run(finished_run)
    assert isinstance(result, quadranas.SearchResult)
    assert result.run == finished_run
    assert result.report_path == finished_run / "report.html"
    network = quadranas.open_run(str(finished_run)).network()
    assert isinstance(network, torch.nn.Module)
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_results_lead_on(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    searched = quadranas.open_run(run)
    assert isinstance(searched, quadranas.SearchResult)
    assert searched.report().report == run / "report.html"
    derived = searched.derive(device="vpu", budget="1ms")
    assert derived.run == run / "derived" / "vpu-1ms"
    assert derived.accuracy is None
    assert quadranas.open_run(derived.run) == derived
    trained = quadranas.train(derived.run, epochs=1, output=tmp_path / "trained")
    assert quadranas.open_run(tmp_path / "trained") == trained
    tested = quadranas.evaluate(trained.run)
    assert (tested.accuracy, tested.num_images) == (trained.accuracy, 8)
    for result in (derived, trained):
        assert isinstance(result.network(), torch.nn.Module)


def test_a_search_takes_a_configuration_or_its_keys(finished_run: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((finished_run / "config.yaml").read_text("utf-8"))
    keys = {key: content[key] for key in ("data", "batch_size", "candidates", "schedule")}
    config = quadranas.SearchConfig(device="cpu", budget="9ms", space="toy", **keys)
    result = quadranas.search(config, budget="0.8ms", output=tmp_path / "run")
    expected = quadranas.open_run(finished_run)
    changed = {"run", "architecture", "table", "report_path"}
    assert result.model_dump(exclude=changed) == expected.model_dump(exclude=changed)
    assert quadranas.search(output=tmp_path / "run", resume=True) == result
    with pytest.raises(QuadranasError, match="arguments: bugdet: unknown key"):
        quadranas.search(bugdet="3ms")


def test_runs_of_version_0_1_0_open(finished_run: Path, tmp_path: Path) -> None:
    """Their config.yaml names neither command nor format version."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    content = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    assert (content.pop("command"), content.pop("format_version")) == ("search", 1)
    (run / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    result = quadranas.open_run(run)
    assert isinstance(result, quadranas.SearchResult)
    assert isinstance(result.derive(device="gpu", budget="1ms"), quadranas.DeriveResult)
    (run / "result.json").unlink()
    again = quadranas.search(output=run, resume=True)
    assert again.accuracy == result.accuracy


def test_an_unfinished_run_names_the_command_that_continues_it(
    finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "result.json").unlink()
    with pytest.raises(QuadranasError, match="is not finished") as caught:
        quadranas.open_run(run)
    assert caught.value.hint == f"Continue it with: quadranas search --resume --output {run}"
    with pytest.raises(QuadranasError, match="is not a run folder"):
        quadranas.open_run(tmp_path)


JSON: dict[str, str] = {
    "search --resume --output run": "SearchResult",
    "derive run --device vpu --budget 1ms": "DeriveResult",
    "explore run --strategy random --trials 2 --device vpu --budget 1ms": "ExploreResult",
    "pareto run --points 2": "ParetoResult",
    "train run --epochs 1": "TrainResult",
    "eval run": "EvaluateResult",
    "report run": "ReportResult",
}


@pytest.mark.parametrize(("command", "name"), JSON.items())
def test_json_is_the_result(
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    name: str,
) -> None:
    """Keys and types of `--json` are the fields of the class, so the two cannot drift."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "run")
    model: type[CommandResult] = getattr(quadranas, name)
    parsed(call(*command.split(), "--json"), model)
