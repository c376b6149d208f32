"""profile: counts and memory of a model, as a function and as a command."""

import subprocess
import sys
from pathlib import Path

import pytest

import quadranas
from quadranas import MemoryResult, ProfileResult
from quadranas.errors import QuadranasError
from quadranas.runs.stored_network import open_network
from quadranas.space.architecture import load_architecture
from quadranas.space.catalog import find_architecture
from quadranas.space.cost import count_macs, count_params
from tests.command_line import call
from tests.typed_results import parsed

ROOT = Path(__file__).parents[2]


def test_counts_are_those_of_the_cost_model(finished_run: Path) -> None:
    architecture = load_architecture(finished_run / "architecture.json")
    result = quadranas.profile(finished_run)
    assert isinstance(result, ProfileResult)
    assert (result.params, result.macs) == (count_params(architecture), count_macs(architecture))
    assert result.params == sum(layer.params for layer in result.layers)
    assert result.macs == sum(layer.macs for layer in result.layers)
    assert quadranas.profile(str(finished_run)) == quadranas.profile(architecture) == result
    assert parsed(call("profile", finished_run, "--json"), ProfileResult) == result


def test_resolution_and_classes_are_chosen() -> None:
    result = quadranas.profile("quadranet25_t", resolution=96, num_classes=7)
    assert (result.resolution, result.num_classes) == (96, 7)
    arguments = ("profile", "quadranet25_t", "--resolution", "96", "--num-classes", "7", "--json")
    assert parsed(call(*arguments), ProfileResult) == result


def test_memory_is_predicted(finished_run: Path) -> None:
    result = quadranas.profile(finished_run, memory=True, batch=2)
    assert isinstance(result, MemoryResult)
    assert result.batch == 2
    assert sum(result.training_parts_bytes.values()) == result.training_peak_bytes
    assert result.saved_bytes == sum(layer.saved_bytes for layer in result.layers)
    assert result.direct is not None
    assert result.direct.saved_bytes == sum(layer.saved_bytes_direct for layer in result.layers)
    found = call("profile", finished_run, "--memory", "--batch", "2", "--json")
    assert parsed(found, MemoryResult) == result


def test_a_batch_without_memory_is_refused() -> None:
    with pytest.raises(QuadranasError, match="--batch needs --memory"):
        quadranas.profile("quadranet25_t", batch=2)


def test_an_opened_network_is_a_model(finished_run: Path) -> None:
    expected = quadranas.profile(finished_run)
    stored = open_network(finished_run)
    assert quadranas.profile(stored) == quadranas.profile(stored.architecture) == expected


@pytest.mark.parametrize("name", ["x" * 5000, "null\0character"])
def test_an_impossible_path_is_refused(name: str) -> None:
    with pytest.raises(QuadranasError, match=r"cannot read model|unknown model"):
        quadranas.profile(name)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("my net.onnx", "is an ONNX file", "quadranas predict 'my net.onnx' --device cpu"),
        ("mynet.py", "is Python source", "quadranas.memory.profile_memory(network, (1, 3, 224"),
        ("net.safetensors", "is a file of weights", "--weights net.safetensors"),
    ],
)
def test_other_files_say_what_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for exists in (False, True):
        if exists:
            Path(name).touch()
        outcome = call("profile", name)
        assert outcome.code == 2
        assert message in outcome.err
        assert hint in outcome.err


def test_counting_does_not_import_torch() -> None:
    script = (
        "import sys, quadranas\n"
        "print(quadranas.profile('quadranet36_t').params, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == [str(count_params(find_architecture("quadranet36_t"))), "False"]
