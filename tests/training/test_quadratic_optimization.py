import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.layers.quadratic import QuadraticConv2d, QuadraticLinear
from quadranas.training.quadratic_optimization import (
    SecondOrderControl,
    clip_products,
    quadratic_parameter_groups,
)

OPTIMISERS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "AdamW": {},
    "RMSprop": {},
    "Adagrad": {},
    "Rprop": {},
}


def network() -> Any:
    return nn.Sequential(
        QuadraticConv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        QuadraticLinear(4 * 16, 8, form="bilinear"),
        nn.Linear(8, 5),
    )


def images() -> Tensor:
    return torch.randn(6, 3, 4, 4)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(images()).square().mean().backward()
    optimizer.step()


def test_every_parameter_is_in_the_group_it_belongs_to() -> None:
    model = network()
    groups = quadratic_parameter_groups(
        model, lr=0.2, weight_decay=0.3, second_order_lr=0.5, second_order_decay=0.7
    )
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["second_order"], group["lr"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    second, plain = (True, 0.1, 0.7), (False, 0.2, 0.3)
    assert found == {
        "0.a.weight": second,
        "0.a.bias": (True, 0.1, 0.0),
        "0.b.weight": second,
        "0.b.bias": (True, 0.1, 0.0),
        "0.c.weight": plain,
        "0.c.bias": (False, 0.2, 0.0),
        "1.weight": (False, 0.2, 0.0),
        "1.bias": (False, 0.2, 0.0),
        "3.c.weight": plain,
        "3.c.bias": (False, 0.2, 0.0),
        "3.matrix": second,
        "4.weight": plain,
        "4.bias": (False, 0.2, 0.0),
    }
    assert sum(len(group["params"]) for group in groups) == len(found)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_any_optimiser_trains_the_groups(name: str) -> None:
    model = network()
    groups = quadratic_parameter_groups(model, lr=1e-2)
    optimizer = getattr(torch.optim, name)(groups, lr=1e-2, **OPTIMISERS[name])
    SecondOrderControl(optimizer, model, warmup_steps=2, max_product=0.05)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for _ in range(3):
        step(model, optimizer)
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_the_warm_up_scales_plain_gradient_steps() -> None:
    """In the n-th of three steps of warm-up, a factor moves by n/4 of its step."""
    model = network()
    optimizer = torch.optim.SGD(quadratic_parameter_groups(model, lr=0.1, second_order_lr=0.5))
    SecondOrderControl(optimizer, model, warmup_steps=3)
    layer = model[0]
    for number in range(1, 6):
        before = layer.a.weight.double(), layer.c.weight.double()
        step(model, optimizer)
        moved = before[0] - layer.a.weight
        share = min(1, number / 4)
        torch.testing.assert_close(
            moved, 0.05 * share * layer.a.weight.grad.double(), atol=1e-6, rtol=1e-3
        )
        torch.testing.assert_close(
            before[1] - layer.c.weight, 0.1 * layer.c.weight.grad.double(), atol=1e-6, rtol=1e-3
        )
    assert {group["lr"] for group in optimizer.param_groups} == {0.1, 0.05}


def test_a_scheduler_and_the_warm_up_go_together() -> None:
    model = network()
    optimizer = torch.optim.SGD(quadratic_parameter_groups(model, lr=0.1))
    SecondOrderControl(optimizer, model, warmup_steps=10)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(3):
        step(model, optimizer)
        scheduler.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.0125, 0.0125, 0.00125, 0.00125])


def test_a_run_continues_in_the_middle_of_the_warm_up() -> None:
    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = network()
        optimizer = torch.optim.AdamW(quadratic_parameter_groups(model, lr=0.01))
        SecondOrderControl(optimizer, model, warmup_steps=5, max_product=0.05)
        return model, optimizer

    model, optimizer = begin()
    data = [images() for _ in range(6)]

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor]) -> None:
        for batch in batches:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

    train(model, optimizer, data[:3])
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    saved = copy.deepcopy(optimizer.state_dict())
    resumed, its_optimizer = begin()
    resumed.load_state_dict(weights)
    its_optimizer.load_state_dict(saved)
    train(model, optimizer, data[3:])
    train(resumed, its_optimizer, data[3:])
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_removed_control_controls_nothing() -> None:
    model = network()
    optimizer = torch.optim.SGD(quadratic_parameter_groups(model, lr=0.1))
    control = SecondOrderControl(optimizer, model, max_product=1e-9)
    control.remove()
    before = model[0].a.weight.clone()
    step(model, optimizer)
    assert model[0].a.weight.norm() > 0.5 * before.norm()


def product(layer: Any) -> Any:
    """Per neuron, in float64: what `clip_products` bounds."""
    rows = {
        name: torch.cat([b.weight.double(), b.bias.double()[:, None]], 1).norm(dim=1)
        for name, b in layer.branches.items()
        if name != "c"
    }
    if layer.form == "output_square":
        return rows["a"] ** 2
    if rows:
        return torch.stack(list(rows.values())).prod(0)
    return layer.matrix.double().flatten(1).norm(dim=1)


@pytest.mark.parametrize(
    "form", ["hadamard", "product", "output_square", "input_square", "bilinear", "pure_bilinear"]
)
def test_products_are_bounded_and_small_ones_left_alone(form: str) -> None:
    layer: Any = QuadraticLinear(6, 9, form=form, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    before, old = product(layer).clone(), {n: p.clone() for n, p in layer.named_parameters()}
    limit = float(before.detach().sort().values[4:6].mean())
    assert clip_products(layer, limit) == int((before > limit).sum()) > 0
    torch.testing.assert_close(product(layer), before.clamp(max=limit))
    small = before <= limit
    for name, parameter in layer.named_parameters():
        assert torch.equal(parameter[small], old[name][small])
        if name.startswith("c."):
            assert torch.equal(parameter, old[name])
    if form == "hadamard":  # both factors shrink by the same
        ratio = layer.a.weight / old["a.weight"]
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
        torch.testing.assert_close(layer.b.weight / old["b.weight"], ratio)


@pytest.mark.parametrize("form", ["hadamard", "output_square", "input_square", "pure_bilinear"])
def test_the_bound_holds_for_the_term(form: str) -> None:
    layer = QuadraticConv2d(2, 3, 3, form=form, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    clip_products(layer, 0.01)
    x = 10 * torch.randn(50, 2, 3, 3, dtype=torch.float64)
    term = layer.terms(x)[1]
    assert term is not None
    energy = x.square().sum((1, 2, 3)) + 1
    assert bool((term.flatten(1).abs().amax(1) <= 0.01 * energy).all())


def test_normalised_branches_are_not_clipped() -> None:
    layer = QuadraticLinear(6, 9, norm=True)
    assert clip_products(layer, 1e-6) == 0


def test_faults_are_explained() -> None:
    plain = nn.Linear(3, 3)
    with pytest.raises(QuadranasError, match="the network has no quadratic layer"):
        quadratic_parameter_groups(plain, lr=0.1)
    with pytest.raises(QuadranasError, match=r"second_order_lr must be above 0, got -1"):
        quadratic_parameter_groups(network(), lr=0.1, second_order_lr=-1)
    with pytest.raises(QuadranasError, match=r"weight_decay must be 0 or more, got -1"):
        quadratic_parameter_groups(network(), lr=0.1, weight_decay=-1)
    with pytest.raises(QuadranasError, match="the optimiser has no second-order group"):
        SecondOrderControl(torch.optim.SGD(plain.parameters()), plain)
    model = network()
    optimizer = torch.optim.SGD(quadratic_parameter_groups(model, lr=0.1))
    with pytest.raises(QuadranasError, match="warmup_steps must be 0 or more, got -1"):
        SecondOrderControl(optimizer, model, warmup_steps=-1)
    with pytest.raises(QuadranasError, match="max_product must be above 0, got 0"):
        clip_products(model, 0)
