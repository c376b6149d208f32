"""Small operations of every kind, and how closely results in float64 must agree."""

from typing import Any

import torch
from torch import Tensor

from quadranas.space.operation import OpSpec


def spec(kind: str, *, channels: int = 8, resolution: int = 16, **changes: Any) -> OpSpec:
    """A possible operation of a kind, changed."""
    usual = {"in_channels": channels, "out_channels": channels, "resolution": resolution}
    window = {"kernel_size": 2, "stride": 2} if kind in ("patch_stem", "downsample") else {}
    return OpSpec(kind=kind, **(usual | window | changes))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
