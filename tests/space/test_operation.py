"""Operations: what is possible, what is refused, and how one reads in words."""

from typing import Any

import pytest
from pydantic import ValidationError

from quadranas.space.operation import OP_RULES
from tests.operations import spec


@pytest.mark.parametrize(
    ("kind", "changes", "fault"),
    [
        ("patch_stem", {"stride": 4}, "patches need kernel_size = stride, got 2 and 4"),
        ("downsample", {"resolution": 15}, "resolution 15 is not divisible by stride 2"),
        ("downsample", {"expand_ratio": 2}, "expand_ratio must be 1, got 2"),
        ("quadratic_depthwise", {"kernel_size": 4}, "kernel_size must be odd, got 4"),
        (
            "quadratic_depthwise",
            {"out_channels": 9},
            "in_channels = out_channels needed, got 8 -> 9",
        ),
        ("quadratic_depthwise", {"stride": 2}, "stride must be 1, got 2"),
        ("quadratic_depthwise", {"expand_ratio": 4}, "expand_ratio must be 1, got 4"),
        ("feed_forward", {"out_channels": 9}, "in_channels = out_channels needed, got 8 -> 9"),
        ("feed_forward", {"kernel_size": 3}, "kernel_size must be 1, got 3"),
        ("feed_forward", {"expand_ratio": 0.01}, "expand_ratio 0.01 gives 0 channels"),
        ("norm_head", {"kernel_size": 3}, "kernel_size must be 1, got 3"),
        ("norm_head", {"num_quadratic": 1}, "num_quadratic must be 0, got 1"),
        ("conv_bn", {"kernel_size": 2}, "kernel_size must be odd, got 2"),
        ("conv_bn", {"num_quadratic": 2}, "num_quadratic must be 0, got 2"),
        ("mbconv", {"kernel_size": 2}, "kernel_size must be odd, got 2"),
        ("mbconv", {"expand_ratio": 0.05}, "expand_ratio 0.05 gives 0 channels"),
        ("mbconv", {"num_quadratic": 1}, "num_quadratic must be 0, got 1"),
        ("linear_head", {"stride": 2}, "stride must be 1, got 2"),
    ],
)
def test_impossible_operations(kind: str, changes: dict[str, Any], fault: str) -> None:
    spec(kind)  # possible without the changes
    with pytest.raises(ValidationError) as caught:
        spec(kind, **changes)
    (found,) = caught.value.errors()
    assert found["msg"] == f"Value error, impossible {kind}: {fault}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("in_channels", 0),
        ("in_channels", 65537),
        ("out_channels", 10**30),
        ("resolution", 8193),
        ("kernel_size", 65),
        ("kernel_size", -1),
        ("stride", 33),
        ("expand_ratio", 0),
        ("expand_ratio", float("nan")),
        ("expand_ratio", float("inf")),
        ("num_quadratic", 3),
        ("resolution", 16.5),
        ("resolution", "large"),
        ("in_channels", None),
    ],
)
def test_numbers_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        spec("mbconv", **{field: value})
    assert {fault["loc"][0] for fault in caught.value.errors()} == {field}


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    accepted = ", ".join(sorted(OP_RULES))
    message = f"unknown kind 'mbconf'; accepted: {accepted}; did you mean 'mbconv'\\?"
    with pytest.raises(ValidationError, match=message):
        spec("mbconf")


def test_an_operation_in_words() -> None:
    assert str(spec("feed_forward", expand_ratio=4, num_quadratic=1)) == (
        "feed_forward 8->8 r16 e4 q1"
    )
    assert str(spec("mbconv", kernel_size=5, stride=2, expand_ratio=1.5)) == (
        "mbconv 8->8 r16 k5 s2 e1.5"
    )


def test_specs_are_values() -> None:
    one, same, other = spec("conv_bn"), spec("conv_bn"), spec("conv_bn", stride=2)
    assert len({one, same, other}) == 2
    with pytest.raises(ValidationError, match="Instance is frozen"):
        one.stride = 2  # type: ignore[misc]
