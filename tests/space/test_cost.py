"""Parameters and MACs against the published tables and against PyTorch's own modules."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import pytest
import torch
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.network.published import create_model
from quadranas.space import cost
from quadranas.space.cost import count_macs, count_params, primitives
from quadranas.space.operation import OpSpec
from quadranas.space.reference import REFERENCE_MODELS, reference_architecture

Counter = Callable[[nn.Module, Tensor], tuple[int, int]]


class Row(TypedDict):
    recomputed: list[str]
    paper: list[str]


GOLDEN = Path(__file__).parents[1] / "golden" / "quadranet_tables.json"
TABLES: dict[str, Row] = json.loads(GOLDEN.read_text(encoding="utf-8"))["models"]


@pytest.mark.parametrize("name", TABLES)
def test_reference_models_have_the_published_counts(name: str) -> None:
    network = reference_architecture(name)
    millions, billions = count_params(network) / 1e6, count_macs(network) / 1e9
    assert [f"{millions:.2f}", f"{billions:.2f}"] == TABLES[name]["recomputed"]
    paper_millions, paper_billions = map(float, TABLES[name]["paper"])
    assert millions == pytest.approx(paper_millions, rel=0.03)
    assert billions == pytest.approx(paper_billions, rel=0.02)


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_reference_models_are_counted_as_pytorch_counts_them(
    name: str, count_by_torch: Counter
) -> None:
    with torch.device("meta"):
        found = count_by_torch(create_model(name), torch.empty(1, 3, 224, 224))
    network = reference_architecture(name)
    assert found == (count_params(network), count_macs(network))


def test_counts_of_operations_add_up() -> None:
    network = reference_architecture("quadranet25_t")
    ops = list(network.ops())
    assert count_params(ops) == sum(map(count_params, ops)) == count_params(network)
    assert count_macs(ops) == sum(map(count_macs, ops)) == count_macs(network)


def test_macs_follow_the_pixels_and_parameters_do_not() -> None:
    small, large = (reference_architecture("quadranet25_t", resolution=r) for r in (64, 128))
    head = 512 * 1000
    assert count_macs(large) - head == 4 * (count_macs(small) - head)
    assert count_params(large) == count_params(small)


def test_a_quadratic_depthwise_convolution_by_hand() -> None:
    spec = OpSpec(
        kind="quadratic_depthwise", in_channels=4, out_channels=4, resolution=8, kernel_size=3
    )
    branch = (4 * 9 * 64, 4 * 9 + 4)
    assert [(p.kind, p.num_macs, p.num_params) for p in primitives(spec)] == [
        ("elementwise", 0, 8),  # LayerNorm
        ("depthwise", *branch),
        ("depthwise", *branch),
        ("depthwise", *branch),
        ("elementwise", 0, 0),  # product
        ("elementwise", 0, 0),  # sum
        ("folded", 0, 4),  # gamma
        ("elementwise", 0, 0),  # residual
    ]


def test_an_inverted_bottleneck_by_hand() -> None:
    spec = OpSpec(
        kind="mbconv",
        in_channels=4,
        out_channels=4,
        resolution=8,
        kernel_size=5,
        expand_ratio=3,
    )
    found = [(p.kind, p.num_macs, p.num_params) for p in primitives(spec)]
    assert found == [
        ("pointwise", 48 * 64, 48),
        ("folded", 0, 24),  # BatchNorm
        ("depthwise", 12 * 25 * 64, 300),
        ("folded", 0, 24),
        ("pointwise", 48 * 64, 48),
        ("folded", 0, 8),
        ("elementwise", 0, 0),  # residual
    ]
    plain = spec.model_copy(update={"expand_ratio": 1, "stride": 2})
    kinds = [p.kind for p in primitives(plain)]
    assert kinds == ["depthwise", "folded", "pointwise", "folded"]


def test_a_kind_without_a_count_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = OpSpec(kind="conv_bn", in_channels=3, out_channels=8, resolution=8)
    monkeypatch.delitem(cost.PRIMITIVES, "conv_bn")
    with pytest.raises(
        QuadranasError, match="cannot count the primitives of operation kind 'conv_bn'"
    ):
        count_params(spec)
