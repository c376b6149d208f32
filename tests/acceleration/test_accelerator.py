"""Accelerators: named, refused, and a whole search on one that is not the processor."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from quadranas.acceleration.accelerator import Accelerator, Precision, find_accelerator
from quadranas.errors import QuadranasError
from tests.command_line import SMALL, Server, call

SEARCH = ("search", "--space", "toy", "--device", "vpu", "--budget", "1ms", "--json")


@pytest.fixture
def config(tmp_path: Path, pictures: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(SMALL.format(pictures=pictures))
    return path


EVERYTHING = """
holdout: 0.2
checkpointing: true
weights: {ema: 0.9, drop_path: 0.3, second_order_warmup: 0.5}
"""


def test_a_search_runs_on_an_accelerator_and_leaves_no_tensor_behind(
    tmp_path: Path, server: Server, config: Path
) -> None:
    prelude = (
        "from pathlib import Path\n"
        "from tests.acceleration.simulated import count_reads\n"
        "from quadranas.training.network_phase import NetworkTraining\n"
        "from quadranas.training.supernet_phase import SupernetTraining\n"
        "count_reads((SupernetTraining, NetworkTraining), Path('reads.jsonl'))"
    )
    folder = tmp_path / "work"
    folder.mkdir()
    with config.open("a", encoding="utf-8") as file:
        file.write(EVERYTHING)
    arguments = (*SEARCH, "--config", str(config), "--output", "run")
    outcome = server.run(folder, *arguments, prelude=prelude)
    assert outcome.code == 0, outcome.err
    result = outcome.json()
    assert result["accelerator"] == "simulated:0"  # found by `auto`
    assert result["accuracy"] == pytest.approx(on_processor(tmp_path, config)["accuracy"], abs=0.2)
    waits = [json.loads(line) for line in (folder / "reads.jsonl").read_text("utf-8").splitlines()]
    assert {phase for phase, _, _ in waits} == {"supernet", "finetune"}
    for phase, values, reads in waits:
        # An architecture step reads the gradients in the gates, once; other steps read nothing.
        assert len(reads) == ("gate_loss" in values), (phase, values, reads)


def on_processor(tmp_path: Path, config: Path) -> dict[str, Any]:
    arguments = (*SEARCH, "--config", config, "--output", tmp_path / "cpu", "--accelerator", "cpu")
    outcome = call(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome.json()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_search_trains_in_mixed_precision_and_resumes(
    tmp_path: Path, config: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = (*SEARCH, "--config", config, "--precision", precision)
    outcome = call(*arguments, "--output", "run")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["precision"] == precision
    assert "precision: " + precision in Path("run/config.yaml").read_text("utf-8")
    other = call("search", "--resume", "--output", "run", "--precision", "fp32")
    assert other.code == 2
    assert f"the run has precision '{precision}', got 'fp32'" in other.err


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "gpu", "cpu:1", "cuda:x", ""])
def test_an_accelerator_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    with pytest.raises(QuadranasError) as caught:
        find_accelerator(name)
    assert caught.value.message == f"there is no accelerator {name!r}; there is: cpu"
    assert "pytorch.org" in caught.value.hint


def test_a_precision_that_an_accelerator_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*args: Any, **keys: Any) -> torch.Tensor:
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(torch.nn.functional, "conv2d", lacking)
    with pytest.raises(QuadranasError) as caught:
        find_accelerator("cpu", "bf16")
    assert caught.value.message == "accelerator cpu cannot compute in bf16"
    assert find_accelerator("cpu", "fp32") == Accelerator()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_auto_is_the_processor_without_an_accelerator(precision: Precision) -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    found = find_accelerator("auto", precision)
    assert (found.name, found.precision, found.is_cpu) == ("cpu", precision, True)
