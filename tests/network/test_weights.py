"""Weights in files: they survive, and what does not fit or is damaged is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_tensors, load_weights
from quadranas.space.space_file import load_space
from tests.networks import same_state, state_of

Scrambler = Callable[..., nn.Module]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_torn_file_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"weights{suffix}"
    tensors = {"a": torch.randn(100, 100)}
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(QuadranasError, match=rf"cannot read weights {path}: "):
        load_weights(nn.Linear(2, 2), path)


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(QuadranasError, match=f"cannot read weights .*{name}: .*No such file"):
            load_weights(nn.Linear(2, 2), tmp_path / name)


def test_weights_round_trip(tmp_path: Path, scramble: Scrambler) -> None:
    network = load_space("mbconv-mobile").architecture({})
    trained = scramble(build_subnet(network))
    path = tmp_path / "subnet.safetensors"
    save_file({name: t.contiguous() for name, t in trained.state_dict().items()}, path)
    again = build_subnet(network)
    assert not same_state(again, trained.state_dict())
    load_weights(again, path)
    assert same_state(again, trained.state_dict())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, "f does not fit this network: it lacks tensor 'bias'"),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)},
            "f does not fit this network: it has the unexpected tensor 'more'",
        ),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)},
            r"f does not fit this network: 'bias' has shape \(3,\), expected \(2,\)",
        ),
    ],
)
def test_weights_that_do_not_fit(tensors: dict[str, Tensor], message: str) -> None:
    model = nn.Linear(3, 2)
    before = state_of(model)
    with pytest.raises(QuadranasError, match=message):
        load_tensors(model, tensors, "f")
    assert same_state(model, before)
