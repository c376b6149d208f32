"""The table of a user's own model adds up to what `predict` finds in whole networks."""

from pathlib import Path

import pytest
import torch

from quadranas.backends.interface import Conversion
from quadranas.backends.onnx_file import to_onnx
from quadranas.commands.predict import predict
from quadranas.conversion.own_space import own_space
from quadranas.errors import QuadranasError
from quadranas.latency.device import load_device
from quadranas.measurement.own_entries import own_latencies_ms
from quadranas.network.skeleton import build_subnet
from quadranas.reporter import Reporter
from quadranas.space.sampling import random_architectures
from tests.own_models import SIZE, build

EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)


def test_entries_add_up_to_whole_networks(tmp_path: Path) -> None:
    where = {"layer2.1": ["skip", "hidden"], "layer2.0.conv2": ["quadratic"]}
    made = own_space(build("resnet"), EXAMPLE, where, name="mine", source="test", widths=[0.5])
    space, device = made.space(), load_device("cpu")
    assert device.analytic is not None
    entries = own_latencies_ms(space, device, device.analytic, Reporter(quiet=True))
    assert set(entries) == set(space.specs())
    for network in random_architectures(space, 1, "test"):
        path = tmp_path / "network.onnx"
        conversion = Conversion(input_shape=(1, 3, SIZE, SIZE))
        path.write_bytes(to_onnx(build_subnet(network), conversion))
        whole = predict(path, device=device)
        assert not whole.is_lower_bound
        assert sum(entries[op] for op in network.ops()) == pytest.approx(whole.latency_ms)


def test_operators_without_a_price() -> None:
    class Sorted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build("mobilenet")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x).cumsum(1)  # type: ignore[no-any-return]

    where = {"net.features.3": ["skip"]}
    space = own_space(Sorted(), EXAMPLE, where, name="mine", source="test").space()
    device = load_device("cpu")
    assert device.analytic is not None
    with pytest.raises(QuadranasError, match=r"cannot price the model.*CumSum"):
        own_latencies_ms(space, device, device.analytic, Reporter(quiet=True))
