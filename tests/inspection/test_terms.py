"""The terms of quadratic layers: their distributions, and views of them."""

import copy

import pytest
import torch

from quadranas.inspection.records import NUM_BINS, QUANTILES
from quadranas.inspection.terms import describe, view_terms
from tests.inspection.quadratic_network import images, network


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_distribution_is_that_of_float64(scale: float) -> None:
    values = torch.randn(40, 50) * scale
    found, plain = describe(values), values.double().flatten()
    assert found.mean == pytest.approx(float(plain.mean()), rel=1e-4)
    assert found.std == pytest.approx(float(plain.std(correction=0)), rel=1e-5)
    assert found.norm == pytest.approx(float(plain.norm()), rel=1e-5)
    assert (found.low, found.high) == (float(plain.min()), float(plain.max()))
    expected = plain.quantile(torch.tensor(QUANTILES, dtype=torch.float64))
    assert found.quantiles == pytest.approx(expected.tolist(), rel=1e-4)
    assert len(found.counts) == NUM_BINS
    assert sum(found.counts) == len(plain)
    edges = torch.linspace(found.low, found.high, NUM_BINS + 1, dtype=torch.float64)
    for index, count in enumerate(found.counts):
        inside = (plain >= edges[index]) & (plain < edges[index + 1])
        assert abs(int(inside.sum()) - count) <= 1  # a value on an edge may fall on either side


def test_a_distribution_without_spread_or_without_numbers() -> None:
    same = describe(torch.full((5,), 3.0))
    assert (same.mean, same.std, sum(same.counts)) == (3.0, 0.0, 5)
    none = describe(torch.full((4,), float("nan")))
    assert (none.num_values, none.num_nonfinite, none.max_abs, none.norm) == (4, 4, 0.0, 0.0)
    assert describe(torch.zeros(3)).norm == 0.0
    large = describe(torch.arange(1_000_000.0))
    assert large.quantiles[3] == pytest.approx(5e5, rel=1e-3)
    assert describe(torch.tensor([1.0, 2.0], dtype=torch.bfloat16)).mean == 1.5


def test_views_of_terms_are_means_over_channels() -> None:
    model = network().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    x = images()[:1]
    views = view_terms(model, x)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    hidden = model.eval()[:3](x).double()
    layer = copy.deepcopy(model[3]).double()
    first, second = views["3"]
    assert first is not None
    assert second is not None
    assert first.image is not None
    assert second.image is not None
    expected = (layer.a(hidden) * layer.b(hidden))[0].abs().mean(0)
    torch.testing.assert_close(second.image.double(), expected.detach(), atol=1e-6, rtol=1e-4)
    expected = layer.c(hidden)[0].abs().mean(0)
    torch.testing.assert_close(first.image.double(), expected.detach(), atol=1e-6, rtol=1e-4)
    assert views["6"][0] is None
    assert views["6"][1] is not None
    assert views["6"][1].image is None
