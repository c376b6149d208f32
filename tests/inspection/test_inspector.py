import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from quadranas.errors import QuadranasError
from quadranas.inspection.inspector import Inspector
from quadranas.inspection.terms import view_terms
from tests.inspection.quadratic_network import images, network


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_a_record_holds_what_the_step_computed(memory_efficient: bool) -> None:
    """Against the layer's own input, terms and gradients, computed plainly in float64."""
    model, x = network(memory_efficient), images()
    plain = copy.deepcopy(model).double()
    with Inspector(model) as inspector:
        model(x).square().sum().backward()
        record = inspector.record(7)
    assert record.step == 7
    assert list(record.layers) == ["0", "3", "5", "6"]
    hidden = plain[:3](x.double())
    layer = plain[3]
    u, v, w = (branch(hidden) for branch in (layer.a, layer.b, layer.c))
    found = record.layers["3"]
    assert found.kind == "hadamard"
    assert found.first_order_energy == pytest.approx(float((w**2).mean().detach()), rel=1e-4)
    second = float(((u * v) ** 2).mean().detach())
    assert found.second_order_energy == pytest.approx(second, rel=1e-4)
    assert found.activation is not None
    y = (u * v + w).detach()
    assert found.activation.mean == pytest.approx(float(y.mean()), rel=1e-3)
    assert found.activation.max_abs == pytest.approx(float(y.abs().max()), rel=1e-4)
    plain[4:](u * v + w).square().sum().backward()
    for part in "abc":
        gradient = getattr(layer, part).weight.grad
        assert found.gradients[part].norm == pytest.approx(float(gradient.norm()), rel=1e-3)
        weight = getattr(layer, part).weight.detach()
        assert found.weights[part].std == pytest.approx(float(weight.std(correction=0)), rel=1e-4)
    assert set(record.layers["5"].gradients) == {"c", "matrix"}
    assert record.layers["6"].first_order_energy is None
    assert record.layers["6"].second_order_share is None


def test_all_layers_are_those_that_are_called() -> None:
    """The branches of a quadratic layer are no layers of their own."""
    model = network()
    with Inspector(model, all_layers=True) as inspector:
        model(images()).sum().backward()
        record = inspector.record(0)
    assert {name: layer.kind for name, layer in record.layers.items()} == {
        "0": "hadamard",
        "2": "Conv2d",
        "3": "hadamard",
        "5": "bilinear",
        "6": "product",
        "7": "Linear",
    }
    assert set(record.layers["2"].gradients) == {"weight"}


def test_a_training_is_the_same_with_and_without() -> None:
    """Weights, running averages and random numbers, to the bit; no hook is left."""
    data = [images() for _ in range(5)]

    def train(inspected: bool) -> Any:
        torch.manual_seed(3)
        model = network()
        model.append(nn.Dropout(0.3))
        optimizer = torch.optim.AdamW(model.parameters())
        inspector = Inspector(model, all_layers=True, every=2)
        for number, x in enumerate(data):
            with inspector.step(number) if inspected else nullcontext():
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
        assert [record.step for record in inspector.records] == ([0, 2, 4] if inspected else [])
        for module in model.modules():
            assert not module._forward_hooks
        assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
        return model.state_dict()

    one, other = train(True), train(False)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_detaching_forgets_what_was_not_recorded() -> None:
    model = network()
    inspector = Inspector(model)
    inspector.attach()
    inspector.attach()
    assert len(model[0]._forward_hooks) == 1
    model(images())
    inspector.detach()
    with pytest.raises(QuadranasError, match="nothing to record at step 3"):
        inspector.record(3)


def test_an_alarm_is_called_out_once() -> None:
    model, said = network(), []
    with torch.no_grad():
        model[3].a.weight.fill_(1e-9)
        model[3].b.weight.fill_(1e-9)
        model[3].a.bias.zero_()
        model[3].b.bias.zero_()
    inspector = Inspector(model, on_alarm=lambda alarm: said.append(alarm.text))
    for number in range(2):
        with inspector.step(number):
            model(images()).square().mean().backward()
    assert [len(record.alarms) for record in inspector.records] == [2, 2]
    assert len(said) == 2
    assert "layer 3, step 0: the second-order gradient is vanishing: the norm of a" in said[0]


def test_numbers_that_are_not_finite_raise_an_alarm() -> None:
    model = network()
    inspector = Inspector(model)
    with torch.no_grad():
        model[7].weight.fill_(float("inf"))
    with inspector.step(0):
        model(images()).mean().backward()
    kinds = {(alarm.layer, alarm.kind) for alarm in inspector.records[0].alarms}
    assert ("6", "nonfinite") in kinds
    assert "of 64 gradients of a are not finite" in "\n".join(
        alarm.text for alarm in inspector.records[0].alarms
    )


def test_faults_are_explained() -> None:
    with pytest.raises(QuadranasError, match="the network has no quadratic layer to inspect"):
        Inspector(nn.Linear(3, 3))
    with pytest.raises(QuadranasError, match="no quadratic, linear or convolutional layer"):
        Inspector(nn.ReLU(), all_layers=True)
    with pytest.raises(QuadranasError, match="every must be at least 1, got 0"):
        Inspector(network(), every=0)
    with pytest.raises(QuadranasError, match="no quadratic layer, so there are no terms to show"):
        view_terms(nn.Linear(3, 3), torch.zeros(1, 3))
