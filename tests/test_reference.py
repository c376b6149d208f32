"""The reference pages in docs/reference/: up to date, complete, and with units."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

import quadranas
from docs import evidence
from quadranas.latency.device import Device
from quadranas.latency.runtimes import FASTEST, RUNTIMES
from quadranas.runs.records import Epoch
from quadranas.validation import CommandError, CommandResult
from tests.command_line import CHECKOUT

PLAIN = {
    *("learning_rate", "weight_decay", "clip_norm", "rand_augment_magnitude", "mixup", "cutmix"),
    *(
        "loss",
        "gate_loss",
        "val_loss",
        "temperature",
        "latency_weight",
        "kendall_tau",
        "layer_scale",
        "index",
        "ri",
        *("factors", "prior"),
    ),
    *("mean", "std", "max_abs", "quantiles", "low", "high", "minimum", "maximum", "typical"),
    *("first_order_energy", "second_order_energy", "max_abs_error", "keep", "skip", "slots"),
    *("seed", "format_version", "opset", "target", "provenance", "scale"),
    "plausible_factor",
}
"""Names of numbers without a unit."""


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", CHECKOUT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()
MODELS: list[type[BaseModel]] = list(GENERATOR.Writer(GENERATOR.pages()).places)


def test_the_pages_are_those_of_the_models() -> None:
    expected = GENERATOR.Writer(GENERATOR.pages()).files()
    found = {path.name: path.read_text(encoding="utf-8") for path in GENERATOR.FOLDER.iterdir()}
    stale = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    assert not stale, f"docs/reference/ is not up to date ({', '.join(stale)}): make reference"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_is_described_with_its_unit(model: type[BaseModel]) -> None:
    described = GENERATOR.descriptions(model)
    place = f"{model.__module__}.{model.__name__}"
    for name, field in model.model_fields.items():
        assert described.get(name), f"{place}: describe {name!r} under Args: in the docstring"
        words = described[name]
        is_clear = GENERATOR.unit(name, words) or re.search("[Nn]umber of|[Ii]ndex of", words)
        assert is_clear or name in PLAIN or not holds_numbers(field.annotation), (
            f"{place}: say the unit of {name!r} in the docstring, such as 'in pixels', 'number "
            "of' or 'from 0 to 1'; if it has none, add the key to PLAIN"
        )


def holds_numbers(annotation: Any) -> bool:
    arguments = getattr(annotation, "__args__", ())
    return annotation in (int, float) or any(map(holds_numbers, arguments))


def test_every_runtime_of_a_device_is_named() -> None:
    named = re.findall(r"`(\w+)`", GENERATOR.descriptions(Device)["runtime"])
    assert {*RUNTIMES, FASTEST} <= set(named)


def test_every_result_of_a_command_is_on_the_page() -> None:
    public = (getattr(quadranas, name) for name in quadranas.__all__ if name.endswith("Result"))
    (page,) = (page for page in GENERATOR.pages() if page.name == "results")
    assert set(public) < set(page.models)
    assert all(issubclass(model, CommandResult | CommandError) for model in page.models)


def test_every_file_of_a_run_is_described(finished_run: Path) -> None:
    described = GENERATOR.run_files()
    assert all(described.values()), "describe the name of a file below it, in runs/layout.py"
    written = {path.name for path in finished_run.iterdir()}
    assert written <= set(described), "name the new file in runs/layout.py, then: make reference"


def test_every_key_of_the_metrics_is_described(finished_run: Path) -> None:
    lines = (finished_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    keys = {key for line in lines for key in json.loads(line)}
    assert keys <= set(Epoch.model_fields), "add the new key to Epoch, in runs/records.py"


def test_the_page_of_evidence_is_that_of_the_results() -> None:
    found = evidence.PAGE.read_text(encoding="utf-8")
    assert found == evidence.page(), (
        "docs/explanation/evidence.md is not up to date: make reference"
    )


def test_every_experiment_is_on_the_page_of_evidence() -> None:
    folders = {path.parent.name for path in evidence.EXPERIMENTS.glob("*/README.md")}
    assert {claim.folder for claim in evidence.CLAIMS} == folders
    done = [claim.folder for claim in evidence.CLAIMS if not claim.holds and claim.file.exists()]
    assert not done, f"state in docs/evidence.py what was obtained: {', '.join(done)}"


@pytest.mark.parametrize("path", [*CHECKOUT.glob("docs/**/*.md"), CHECKOUT / "README.md"], ids=str)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(
        r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", path.read_text("utf-8")
    ):
        place = path.parent / target if target else path
        assert place.exists(), f"{path}: {target}"
        headings = (
            re.findall(r"^#+ (.*)$", place.read_text("utf-8"), re.MULTILINE) if anchor else []
        )
        anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
        assert not anchor or anchor in anchors, anchor
