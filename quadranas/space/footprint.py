"""Bytes of operations at inference: their activations in memory, and their weights in a file.

Kernels are those of `cost.py`: normalisation layers, activation functions and layer scales that
inference runtimes fold into a convolution need no memory and, apart from biases, no weights.
"""

import math
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from quadranas.errors import QuadranasError
from quadranas.space.cost import has_residual, primitives
from quadranas.space.operation import OpSpec

BYTES_PER_WEIGHT = 4
"""Weights of a file in fp32, the default precision of an export."""

BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Bytes per activation, by the precision of a device."""

Kernel = tuple[str, int, tuple[str, ...]]
"""Name and size of the tensor that a kernel writes, and the tensors that it reads."""

INPUT = "x"


def weight_bytes(spec: OpSpec) -> int:
    """Bytes of an operation's weights in an exported fp32 file.

    The file folds BatchNorm into a weight and a bias of the convolution before it, and layer scale
    into the weights before it. Of a part of a user's own model all parameters are counted.
    """
    if spec.own is not None:
        return BYTES_PER_WEIGHT * spec.own.params
    kept = sum(
        p.num_params - p.out_channels * (p.kind == "folded" and p.num_params > 0)
        for p in primitives(spec)
    )
    return BYTES_PER_WEIGHT * kept


def peak_bytes(spec: OpSpec, precision: str = "fp32") -> int:
    """The largest number of bytes of activations that exist at once while an operation runs.

    A kernel writes into memory of its own, and a tensor is freed after the last kernel that reads
    it; a residual connection keeps the operation's input until the end. Networks are chains of
    operations, so the peak of a network is the largest of its operations' peaks. Batch size 1;
    without weights and without the workspace of kernels.

    Args:
        precision: that of the activations, a key of `BYTES`.

    Raises:
        QuadranasError: a part of a user's own model, whose kernels are unknown.
    """
    if spec.own is not None:
        raise QuadranasError(
            "the activations of one's own model are not known in advance",
            "Omit --max-memory; --max-size, --max-params and --max-macs are known.",
        )
    return BYTES[precision] * _peak(spec)


@lru_cache(maxsize=1 << 15)
def _peak(spec: OpSpec) -> int:
    """The largest sum of sizes of the tensors that exist at once."""
    input_size, kernels = spec.in_channels * spec.resolution**2, list(KERNELS[spec.kind](spec))
    last_read = {name: step for step, (_, _, read) in enumerate(kernels) for name in read}
    alive, peak = {INPUT: input_size}, 0
    for step, (written, size, _) in enumerate(kernels):
        alive[written] = size
        peak = max(peak, sum(alive.values()))
        alive = {name: n for name, n in alive.items() if last_read.get(name, step) > step}
        alive[written] = size
    return peak


def _out_size(spec: OpSpec) -> int:
    return int(spec.out_channels * spec.out_resolution**2)


def _patch_stem(spec: OpSpec) -> Iterable[Kernel]:
    yield "conv", _out_size(spec), (INPUT,)
    yield "norm", _out_size(spec), ("conv",)


def _downsample(spec: OpSpec) -> Iterable[Kernel]:
    yield "norm", spec.in_channels * spec.resolution**2, (INPUT,)
    yield "conv", _out_size(spec), ("norm",)


def _conv_bn(spec: OpSpec) -> Iterable[Kernel]:
    yield "conv", _out_size(spec), (INPUT,)


def _quadratic(read: str, size: int, name: str) -> Iterable[Kernel]:
    """`a(x) * b(x) + c(x)`: three branches, a product and a sum."""
    branches = tuple(f"{name}.{branch}" for branch in "abc")
    for branch in branches:
        yield branch, size, (read,)
    yield f"{name}.product", size, branches[:2]
    yield name, size, (f"{name}.product", branches[2])


def _quadratic_depthwise(spec: OpSpec) -> Iterable[Kernel]:
    size = _out_size(spec)
    yield "norm", size, (INPUT,)
    yield from _quadratic("norm", size, "conv")
    yield "sum", size, (INPUT, "conv")


def _feed_forward(spec: OpSpec) -> Iterable[Kernel]:
    size, hidden = _out_size(spec), spec.hidden_channels * spec.resolution**2
    yield "norm", size, (INPUT,)
    for name, read, written, is_quadratic in (
        ("expand", "norm", hidden, spec.num_quadratic >= 1),
        ("project", "gelu", size, spec.num_quadratic >= 2),
    ):
        if is_quadratic:
            yield from _quadratic(read, written, name)
        else:
            yield name, written, (read,)
        if name == "expand":
            yield "gelu", hidden, ("expand",)
    yield "sum", size, (INPUT, "project")


def _quadratic_convnext(spec: OpSpec) -> Iterable[Kernel]:
    size, hidden = _out_size(spec), spec.hidden_channels * spec.resolution**2
    yield from _quadratic(INPUT, size, "conv")
    yield "norm", size, ("conv",)
    yield "expand", hidden, ("norm",)
    yield "gelu", hidden, ("expand",)
    yield "project", size, ("gelu",)
    yield "sum", size, (INPUT, "project")


def _mbconv(spec: OpSpec) -> Iterable[Kernel]:
    hidden, read = spec.hidden_channels, INPUT
    if spec.expand_ratio != 1:
        yield "expand", hidden * spec.resolution**2, (read,)
        read = "expand"
    size = hidden * spec.out_resolution**2
    if spec.kind == "quadratic_mbconv":
        yield from _quadratic(read, size, "depthwise")
    else:
        yield "depthwise", size, (read,)
    yield "project", _out_size(spec), ("depthwise",)
    if has_residual(spec):
        yield "sum", _out_size(spec), (INPUT, "project")


def _norm_head(spec: OpSpec) -> Iterable[Kernel]:
    yield "pool", spec.in_channels, (INPUT,)
    yield "norm", spec.in_channels, ("pool",)
    yield "linear", spec.out_channels, ("norm",)


def _linear_head(spec: OpSpec) -> Iterable[Kernel]:
    yield "pool", spec.in_channels, (INPUT,)
    yield "linear", spec.out_channels, ("pool",)


KERNELS: dict[str, Callable[[OpSpec], Iterable[Kernel]]] = {
    "patch_stem": _patch_stem,
    "downsample": _downsample,
    "quadratic_depthwise": _quadratic_depthwise,
    "feed_forward": _feed_forward,
    "quadratic_convnext": _quadratic_convnext,
    "norm_head": _norm_head,
    "conv_bn": _conv_bn,
    "mbconv": _mbconv,
    "quadratic_mbconv": _mbconv,
    "linear_head": _linear_head,
}

UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
PATTERN = re.compile(r"\s*+(\d++(?:\.\d*+)?|\.\d++)\s*+([a-z]*+)\s*+")


def parse_bytes(text: str | int) -> int:
    """Read a number of bytes, such as `512KiB`, `1.5MB` or 4096; a fraction is rounded down.

    Raises:
        QuadranasError: no number, an unknown unit, or less than one byte.
    """
    match = PATTERN.fullmatch(str(text).lower())
    unit = UNITS.get(match.group(2) or "b") if match else None
    number = float(match.group(1)) * unit if match and unit else 0.0
    if not 1 <= number < math.inf:
        raise QuadranasError(
            f"cannot read the size {text!r}",
            "Write a positive number and a unit: B, KB, MB, GB, KiB, MiB or GiB; such as 512KiB.",
        )
    return int(number)


def format_bytes(number: float) -> str:
    """A number of bytes with three significant digits, such as `524 KB`."""
    for limit, unit in ((1e3, "B"), (1e6, "KB"), (1e9, "MB")):
        if number < limit:
            return f"{number / (limit / 1e3):.3g} {unit}"
    return f"{number / 1e9:.3g} GB"
