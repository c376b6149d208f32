"""OpContract: what every operation promises. A kind that is registered in OPS is tested."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from quadranas.layers import OPS, build_op
from quadranas.space.cost import PRIMITIVES, count_macs, count_params, primitives
from quadranas.space.operation import HEADS, OP_RULES, OpSpec

Counter = Callable[[nn.Module, Tensor], tuple[int, int]]
Scrambler = Callable[..., nn.Module]

BATCH = 3


def possible_specs(kind: str) -> list[OpSpec]:
    """Every operation of a kind, of small sizes, that its rule allows."""
    specs: dict[OpSpec, None] = {}
    channels = product((3, 8), (3, 5, 8))
    window = product((1, 4, 6, 7, 8), (1, 2, 3, 4, 5), (1, 2, 3))
    inside = product((1, 0.5, 4), (0, 1, 2))
    for (cin, cout), (size, kernel, stride), (ratio, num_quadratic) in product(
        channels, window, inside
    ):
        try:
            spec = OpSpec(
                kind=kind,
                in_channels=cin,
                out_channels=cout,
                resolution=size,
                kernel_size=kernel,
                stride=stride,
                expand_ratio=ratio,
                num_quadratic=num_quadratic,
            )
        except ValidationError:
            continue
        specs[spec] = None
    return list(specs)


SPECS = {kind: possible_specs(kind) for kind in OPS}


def test_a_kind_is_known_everywhere_or_nowhere() -> None:
    assert set(OPS) == set(OP_RULES) == set(PRIMITIVES)
    assert set(HEADS) < set(OPS)


@pytest.mark.parametrize("kind", OPS)
class TestOpContract:
    def test_examples_cover_the_kind(self, kind: str) -> None:
        specs = SPECS[kind]
        assert len(specs) >= 20
        for field in ("in_channels", "resolution"):
            assert len({getattr(spec, field) for spec in specs}) > 1, field

    @settings(max_examples=25)
    @given(data=st.data())
    def test_output_shape_is_the_specs(self, kind: str, data: st.DataObject) -> None:
        spec = data.draw(st.sampled_from(SPECS[kind]))
        x = torch.randn(BATCH, spec.in_channels, spec.resolution, spec.resolution)
        y = build_op(spec)(x)
        size = spec.out_resolution
        pixels = () if spec.is_head else (size, size)
        assert y.shape == (BATCH, spec.out_channels, *pixels)

    @settings(max_examples=25)
    @given(data=st.data())
    def test_cost_is_what_hooks_count(
        self, kind: str, data: st.DataObject, count_by_torch: Counter
    ) -> None:
        spec = data.draw(st.sampled_from(SPECS[kind]))
        with torch.device("meta"):
            x = torch.empty(1, spec.in_channels, spec.resolution, spec.resolution)
            counted = count_by_torch(build_op(spec).eval(), x)
        assert counted == (count_params(spec), count_macs(spec))

    @settings(max_examples=25)
    @given(data=st.data())
    def test_primitives_pass_on_what_they_are_given(self, kind: str, data: st.DataObject) -> None:
        spec = data.draw(st.sampled_from(SPECS[kind]))
        launches = [p for p in primitives(spec) if p.kind != "folded"]
        assert launches[0].in_channels == spec.in_channels
        assert launches[0].reads == spec.in_channels * spec.resolution**2
        assert launches[-1].out_channels == spec.out_channels
        assert launches[-1].writes == spec.out_channels * spec.out_resolution**2
        assert min(min(p.reads, p.writes) for p in launches) > 0

    @settings(max_examples=15)
    @given(data=st.data())
    def test_gradients_are_finite_and_reach_everything(
        self, kind: str, data: st.DataObject, scramble: Scrambler
    ) -> None:
        spec = data.draw(st.sampled_from(SPECS[kind]))
        op = scramble(build_op(spec))
        x = torch.randn(BATCH, spec.in_channels, spec.resolution, spec.resolution)
        x.requires_grad_()
        op(x).square().sum().backward()
        for name, tensor in [("input", x), *op.named_parameters()]:
            assert tensor.grad is not None, name
            assert tensor.grad.isfinite().all(), name
        assert x.grad is not None
        assert x.grad.abs().sum() > 0

    @settings(max_examples=15)
    @given(data=st.data())
    def test_derivatives_are_those_of_the_function(
        self, kind: str, data: st.DataObject, scramble: Scrambler
    ) -> None:
        small = [s for s in SPECS[kind] if s.resolution <= 4 and s.hidden_channels < 13]
        spec = data.draw(st.sampled_from(small))
        op = scramble(build_op(spec)).double().eval()
        generator = torch.Generator().manual_seed(1)
        shape = (1, spec.in_channels, spec.resolution, spec.resolution)
        x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(op, (x,), fast_mode=True)

    @settings(max_examples=15)
    @given(data=st.data())
    def test_state_dict_round_trip(
        self, kind: str, data: st.DataObject, scramble: Scrambler
    ) -> None:
        spec = data.draw(st.sampled_from(SPECS[kind]))
        first, second = scramble(build_op(spec), 1).eval(), scramble(build_op(spec), 2).eval()
        x = torch.randn(BATCH, spec.in_channels, spec.resolution, spec.resolution)
        with torch.no_grad():
            assert not torch.equal(first(x), second(x))
            second.load_state_dict(first.state_dict())
            assert torch.equal(first(x), second(x))

    @settings(max_examples=15)
    @given(data=st.data())
    def test_images_of_a_batch_do_not_mix_in_evaluation(
        self, kind: str, data: st.DataObject, scramble: Scrambler
    ) -> None:
        spec = data.draw(st.sampled_from(SPECS[kind]))
        op = scramble(build_op(spec)).double().eval()
        x = torch.randn(
            BATCH, spec.in_channels, spec.resolution, spec.resolution, dtype=torch.float64
        )
        with torch.no_grad():
            together, alone = op(x), torch.cat([op(image[None]) for image in x])
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
