"""The ranking against its formula written out, on networks whose layers' worth is known."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quadranas.conversion import RankedLayer, convert, pick, plot_ranking, rank_layers
from quadranas.errors import QuadranasError
from tests.conversion.families import FAMILIES, RESOLUTION


class Staged(nn.Module):
    """x plus three layers of it, the first of which decides the class."""

    def __init__(self, *, useless: int = 2) -> None:
        super().__init__()
        self.decisive = nn.Linear(4, 4, bias=False)
        self.useless = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(useless)])
        with torch.no_grad():
            self.decisive.weight.copy_(10 * torch.eye(4).roll(1, 0))
            for layer in self.useless:
                assert isinstance(layer, nn.Linear)
                layer.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.useless:
            x = x + layer(x)
        out: Tensor = x + self.decisive(x)
        return out


BATCHES = [(torch.eye(4), torch.tensor([1, 2, 3, 0])), (torch.eye(4)[:1], torch.tensor([1]))]


def test_a_layer_without_effect_is_infinitely_removable() -> None:
    ranking = rank_layers(Staged(), BATCHES)
    assert [layer.name for layer in ranking] == ["useless.0", "useless.1", "decisive"]
    assert [layer.ri for layer in ranking] == [math.inf, math.inf, pytest.approx(1 / 3 / 3)]
    assert [layer.accuracy_drop for layer in ranking] == [0, 0, 1]
    content = [layer.model_dump(mode="json") for layer in ranking]
    assert [layer["ri"] is None for layer in content] == [True, True, False]
    assert [RankedLayer.model_validate(layer) for layer in content] == ranking


def test_shares_and_drops_follow_the_formula() -> None:
    model = convert(FAMILIES["vgg"](), keep_ends=False).eval()
    x = torch.randn(16, 3, RESOLUTION, RESOLUTION)
    labels = model(x).argmax(1)  # so that masking costs something
    ranking = rank_layers(model, [(x, labels)])
    # Of one branch, from the shapes: outputs x positions x inputs of a neuron
    macs = {
        "0": 4 * 256 * 27,
        "4": 6 * 64 * 36,
        "7": 6 * 64 * 54,
        "12": 12 * 24,
        "15": 5 * 12,
    }
    params = {"0": 4 * 28, "4": 6 * 37, "7": 6 * 55, "12": 12 * 25, "15": 5 * 13}
    total_params = 3 * sum(params.values()) + 2 * (4 + 6 + 6)
    assert {layer.name for layer in ranking} == set(macs)
    for layer in ranking:
        assert (layer.params, layer.macs) == (3 * params[layer.name], 3 * macs[layer.name])
        assert layer.params_share == pytest.approx(3 * params[layer.name] / total_params)
        assert layer.macs_share == pytest.approx(macs[layer.name] / sum(macs.values()))
        masked = x
        for name, module in model.named_children():
            masked = module(masked)
            masked = torch.zeros_like(masked) if name == layer.name else masked
        drop = 1 - (masked.argmax(1) == labels).double().mean().item()
        assert layer.accuracy_drop == pytest.approx(drop)
        if drop > 0:
            assert layer.ri == pytest.approx(layer.params_share * layer.macs_share / drop)
    indices = [layer.ri for layer in ranking]
    assert indices == sorted(indices, reverse=True)


def test_a_function_ranks_as_batches_do_and_names_choose() -> None:
    model = Staged()

    def accuracy(network: nn.Module) -> float:
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in BATCHES)
        return right / 5

    by_function = rank_layers(model, accuracy, torch.zeros(1, 4), ["decisive", "useless.1"])
    assert by_function == [r for r in rank_layers(model, BATCHES) if r.name != "useless.0"]


def test_ranking_leaves_the_network_as_it_was() -> None:
    model = convert(FAMILIES["mobilenet"](), norm=True).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(4, 3, RESOLUTION, RESOLUTION)
    first = rank_layers(model, [(x, torch.zeros(4, dtype=torch.int64))])
    assert first == rank_layers(model, [(x, torch.zeros(4, dtype=torch.int64))])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_layer_used_twice_counts_its_compute_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.twice = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.twice(self.twice(self.once(x)))
            return out

    found = {layer.name: layer for layer in rank_layers(Twice(), BATCHES)}
    assert (found["once"].macs, found["twice"].macs) == (16, 32)
    assert found["twice"].macs_share == pytest.approx(2 / 3)


def test_the_first_layers_are_picked() -> None:
    model = convert(FAMILIES["resnet"]())
    x = torch.randn(4, 3, RESOLUTION, RESOLUTION)
    ranking = rank_layers(model, [(x, torch.zeros(4, dtype=torch.int64))])
    assert pick(ranking, 1, "remove") == ["wide"]
    assert pick(ranking, 3, "revert") == [layer.name for layer in ranking]
    with pytest.raises(
        QuadranasError, match="cannot remove 2 layers: 1 of the 3 ranked layers can be removed"
    ) as e:
        pick(ranking, 2, "remove")
    assert "narrow: it turns 4 channels into 8" in e.value.hint
    assert "choose 1 to 1" in e.value.hint


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((BATCHES, None, ["decisiv"]), "did you mean 'decisive'"),
        (([], None), "the batches to rank layers on are empty"),
        ((iter(BATCHES), None), "can be iterated only once"),
        ((lambda network: 0.5, None), "without an example input"),
        ((lambda network: 50.0, torch.zeros(1, 4)), "between 0 and 1, got 50"),
        ((lambda network: math.nan, torch.zeros(1, 4)), "between 0 and 1, got nan"),
    ],
)
def test_impossible_rankings_are_refused(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(QuadranasError, match=text):
        rank_layers(Staged(), *arguments)


def test_a_network_without_layers_cannot_be_ranked() -> None:
    with pytest.raises(QuadranasError, match="no layer to rank"):
        rank_layers(nn.Sequential(nn.ReLU()), BATCHES)


def test_the_plot_names_every_layer_and_says_what_is_infinite() -> None:
    figure = plot_ranking(rank_layers(Staged(), BATCHES))
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        *("useless.0", "useless.1", "decisive")
    ]
    assert [t.get_text() for t in figure.axes[2].texts] == 2 * ["infinite (dA <= 0)"]
    are_long = [bar.get_window_extent().width > 1 for bar in figure.axes[1].patches]
    assert are_long == [False, False, True]
