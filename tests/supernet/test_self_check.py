"""The check before a search: it passes what is sound, and names what is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quadranas.data.batch import Batch
from quadranas.errors import QuadranasError
from quadranas.latency.table import LatencyTable, TableEntry
from quadranas.latency.table_files import find_table
from quadranas.layers.quadratic import QuadraticConv2d
from quadranas.runs.config import GateConfig
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import SpaceFile, build_space, load_space, load_space_file
from quadranas.supernet.budget_controller import BudgetController
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gate_training import GateTrainer
from quadranas.supernet.gates import Gates, gate_infos
from quadranas.supernet.self_check import HINT, ROUNDING, check_gradients
from quadranas.supernet.supernet import Supernet, build_supernet

TOY = load_space("toy")
BATCH_SIZE = 6
KERNEL_5 = "quadratic_depthwise 8->8 r8 k5"
IN_THE_MIDDLE = f"stage1_block2: {KERNEL_5}"

Break = Callable[[nn.Module], None]


def narrow_mbconv() -> SearchSpace:
    """ProxylessNAS's space, complete, with narrow layers."""
    file = load_space_file("mbconv-mobile", widths=(8, 8, 8, 8, 8, 8, 8, 8, 8))
    content = file.model_dump() | {"resolution": 64, "num_classes": 10}
    return build_space(SpaceFile.model_validate(content))


def table_for(space: SearchSpace, *, equal: str = "") -> LatencyTable:
    """Latencies that differ, but for candidates whose name contains `equal`."""
    entries = tuple(
        TableEntry(op=spec, latency_ms=0.3 if equal and equal in str(spec) else 0.1 + 0.01 * index)
        for index, spec in enumerate(space.specs())
    )
    return LatencyTable(header=find_table(TOY, "vpu").header, entries=entries)


def batch_for(space: SearchSpace) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH_SIZE, 3, space.resolution, space.resolution, generator=generator)
    return Batch(images, torch.eye(space.num_classes)[:BATCH_SIZE])


def trainer_for(supernet: Supernet, table: LatencyTable | None = None) -> GateTrainer:
    expected = ExpectedLatency(supernet.space, supernet.gates, table or table_for(supernet.space))
    return GateTrainer(supernet, expected, BudgetController(1.0), GateConfig(learning_rate=0.03))


def check(supernet: Supernet, trainer: GateTrainer | None = None) -> None:
    check_gradients(supernet, trainer or trainer_for(supernet), batch_for(supernet.space))


@pytest.fixture
def supernet() -> Supernet:
    return build_supernet(TOY, seed=0).train()


def candidate(supernet: Supernet, name: str) -> nn.Module:
    return dict(supernet.candidates())[name]


# ---------------------------------------------------------------- sound supernets


@pytest.mark.parametrize("space", [TOY, narrow_mbconv()], ids=lambda space: str(space.name))
def test_a_sound_supernet_passes_and_is_left_as_it_was(space: SearchSpace) -> None:
    supernet = build_supernet(space, seed=0).train()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    random_state = torch.get_rng_state()
    trainer = trainer_for(supernet)
    check(supernet, trainer)
    assert all(torch.equal(t, before[name]) for name, t in supernet.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.requires_grad and p.grad is None for p in supernet.parameters())
    assert all(module.training for module in supernet.modules())
    assert all(not module._forward_hooks for module in supernet.modules())
    assert trainer.controller == BudgetController(1.0)
    assert not trainer.optimizer.state


@pytest.mark.parametrize("device", ["vpu", "cpu", "gpu"])
@pytest.mark.parametrize("name", ["toy", "quadranet-tiny", "quadranet-mobile", "mbconv-mobile"])
def test_small_differences_of_shipped_tables_are_no_rounding(name: str, device: str) -> None:
    # On the gpu, kernel sizes differ by a few parts in a million.
    space = load_space(name)
    gates = Gates(gate_infos(space), torch.Generator().manual_seed(0))
    expected = ExpectedLatency(space, gates, find_table(space, device))
    expected_ms = float(expected(gates.probabilities()).detach())
    for info, costs in zip(gates.infos, expected.costs_ms, strict=True):
        if info.slot is not None:
            gaps = costs[: len(info.candidates)].sort().values.diff()
            assert gaps.min() > 1000 * ROUNDING * expected_ms


def test_a_candidate_that_costs_the_mean_of_all_is_no_culprit() -> None:
    content = load_space_file("toy").model_dump() | {"name": "triples"}
    for stage in content["stages"]:
        stage["slots"] = [{"kind": "feed_forward", "expand_ratio": (1, 2, 3)}]
    space = build_space(SpaceFile.model_validate(content))
    supernet = build_supernet(space, seed=0).train()
    nn.init.zeros_(supernet.gates.alpha)
    trainer = trainer_for(supernet)
    ((gradient, _),) = trainer.latency_gradients(within=None)
    assert gradient[0, 1].abs() < ROUNDING
    check(supernet, trainer)


@pytest.mark.parametrize("equal", ["feed_forward 16->16", " "])
def test_equal_latencies_are_no_missing_gradient(supernet: Supernet, equal: str) -> None:
    check(supernet, trainer_for(supernet, table_for(TOY, equal=equal)))


def test_a_space_without_decisions_passes() -> None:
    content = load_space_file("toy").model_dump() | {"name": "fixed"}
    for stage in content["stages"]:
        stage |= {"depth": (1, 1), "slots": [{"kind": "feed_forward", "expand_ratio": (2,)}]}
    space = build_space(SpaceFile.model_validate(content))
    supernet = build_supernet(space, seed=0).train()
    assert not supernet.gates.infos
    check(supernet)


# ---------------------------------------------------------------- culprits among candidates


def detach_a_weight(module: nn.Module) -> None:
    conv = module.conv
    assert isinstance(conv, QuadraticConv2d)
    a, b, c = conv.branches.values()

    def forward(x: Tensor) -> Tensor:
        weights: dict[str, Tensor] = dict(b.named_parameters())
        weights["weight"] = weights["weight"].detach()
        v: Tensor = torch.func.functional_call(b, weights, x)
        y: Tensor = a(x) * v + c(x)
        return y

    conv.forward = forward  # type: ignore[method-assign, assignment]


def ignore_a_weight(module: nn.Module) -> None:
    module.spare = nn.Parameter(torch.ones(3))


def multiply_by_zero(module: nn.Module) -> None:
    assert isinstance(module.gamma, nn.Parameter)
    nn.init.zeros_(module.gamma)


@pytest.mark.parametrize(
    ("sabotage", "weight"),
    [(detach_a_weight, "conv.b.weight"), (ignore_a_weight, "spare"), (multiply_by_zero, "norm.")],
)
def test_a_weight_that_gets_no_gradient(supernet: Supernet, sabotage: Break, weight: str) -> None:
    sabotage(candidate(supernet, IN_THE_MIDDLE))
    with pytest.raises(QuadranasError) as caught:
        check(supernet)
    assert caught.value.message.startswith(f"no usable gradient of the task loss reaches {weight}")
    assert caught.value.message.endswith(f"of candidate {IN_THE_MIDDLE}")
    assert caught.value.hint == HINT


class NotANumber(torch.autograd.Function):
    """Passes values on, and gives a gradient that is none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.nan


def replace_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    module.register_forward_hook(lambda module, inputs, output: change(output))


@pytest.mark.parametrize("position", [0, 1, 6, -1])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * torch.nan, "candidate {} computes values that are not finite"),
        (lambda x: x + torch.inf, "candidate {} computes values that are not finite"),
    ],
)
def test_a_candidate_that_gives_no_numbers_is_named_and_not_its_company(
    supernet: Supernet, position: int, change: Callable[[Tensor], Tensor], message: str
) -> None:
    name, module = list(supernet.candidates())[position]
    replace_output(module, change)
    with pytest.raises(QuadranasError) as caught:
        check(supernet)
    assert caught.value.message == message.format(name)


@pytest.mark.parametrize(
    "change", [torch.detach, NotANumber.apply, lambda x: x * 0], ids=["detach", "nan", "zero"]
)
@pytest.mark.parametrize("before", [True, False])
def test_a_candidate_that_breaks_the_chain_is_named_and_not_what_comes_before(
    supernet: Supernet, change: Callable[[Tensor], Tensor], before: bool
) -> None:
    module = candidate(supernet, IN_THE_MIDDLE)
    if before:
        module.register_forward_pre_hook(lambda module, inputs: (change(inputs[0]),))
    else:
        inside = module.forward
        module.forward = lambda x: change(inside(x))
    with pytest.raises(QuadranasError) as caught:
        check(supernet)
    assert caught.value.message == (
        f"candidate {IN_THE_MIDDLE} passes no usable gradient of the task loss to its input"
    )


def test_candidates_that_do_the_same_leave_a_gate_without_a_preference(
    supernet: Supernet,
) -> None:
    first = candidate(supernet, "stage1_block2: quadratic_depthwise 8->8 r8 k3")
    second = candidate(supernet, IN_THE_MIDDLE)
    second.forward = first.forward
    for parameter in list(second.parameters()):
        parameter.requires_grad_(False)
    second.conv, second.norm, second.gamma = nn.Identity(), nn.Identity(), None  # type: ignore[assignment]
    with pytest.raises(QuadranasError) as caught:
        check(supernet)
    assert caught.value.message == (
        "no usable gradient of the task loss reaches the alpha of "
        "'quadratic_depthwise 8->8 r8 k3' at gate stage1_block2.slot0"
    )


# ---------------------------------------------------------------- culprits in the latency term


@pytest.mark.parametrize("row", range(10))
def test_a_gate_without_costs(supernet: Supernet, row: int) -> None:
    trainer = trainer_for(supernet)
    info = supernet.gates.infos[row]
    trainer.expected.costs_ms[row] = 0.0
    if info.slot is None:
        trainer.expected.depth_row[trainer.expected.depth_row == row] = -1
    with pytest.raises(QuadranasError, match=f"latency term reaches .* at gate {info.name}"):
        check(supernet, trainer)


def test_an_expected_latency_without_a_graph(
    supernet: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_graph(self: ExpectedLatency, probabilities: Tensor) -> Tensor:
        return (probabilities.detach() * self.costs_ms).sum()

    monkeypatch.setattr(ExpectedLatency, "__call__", without_graph)
    with pytest.raises(QuadranasError, match=r"latency term reaches .* stage1_block1\.slot0"):
        check(supernet)
