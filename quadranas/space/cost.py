"""Parameters, MACs and memory traffic of operations, counted from their descriptions alone.

MACs are those of convolutions and linear layers, as in the papers' tables. Every operation is
broken into primitives, and the device models predict latency from the same primitives.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from quadranas.errors import QuadranasError
from quadranas.space.architecture import Architecture
from quadranas.space.operation import OpSpec


@dataclass(frozen=True, kw_only=True)
class Primitive:
    """One kernel launch of an operation.

    Args:
        kind: `conv`, `pointwise`, `depthwise`, `linear` (on a vector), `elementwise` (memory
            traffic only: LayerNorm, GELU, products, sums, pooling), `sigmoid` (sigmoids and
            swishes: element-wise, but slow on some devices), `join` (concatenation and split,
            free of copies in some runtimes) or `folded` (BatchNorm, ReLU6 and layer scale, which
            inference runtimes fold into the convolution before them).
        reads, writes: the number of activation elements; weights are in `num_params`.
    """

    kind: str
    in_channels: int
    out_channels: int
    reads: int
    writes: int
    num_macs: int = 0
    num_params: int = 0


def _conv(cin: int, cout: int, kernel: int, resolution: int, stride: int, bias: bool) -> Primitive:
    pixels_out = (-(-resolution // stride)) ** 2
    weights = cin * cout * kernel**2
    return Primitive(
        kind="pointwise" if kernel == 1 else "conv",
        in_channels=cin,
        out_channels=cout,
        reads=cin * resolution**2,
        writes=cout * pixels_out,
        num_macs=weights * pixels_out,
        num_params=weights + cout * bias,
    )


def _depthwise(channels: int, kernel: int, resolution: int, stride: int, bias: bool) -> Primitive:
    pixels_out = (-(-resolution // stride)) ** 2
    return Primitive(
        kind="depthwise",
        in_channels=channels,
        out_channels=channels,
        reads=channels * resolution**2,
        writes=channels * pixels_out,
        num_macs=channels * kernel**2 * pixels_out,
        num_params=channels * (kernel**2 + bias),
    )


def _elementwise(
    channels: int, resolution: int, num_inputs: int, num_params: int = 0
) -> Primitive:
    size = channels * resolution**2
    return Primitive(
        kind="elementwise",
        in_channels=channels,
        out_channels=channels,
        reads=num_inputs * size,
        writes=size,
        num_params=num_params,
    )


def _folded(channels: int, params_per_channel: int) -> Primitive:
    return Primitive(
        kind="folded",
        in_channels=channels,
        out_channels=channels,
        reads=0,
        writes=0,
        num_params=channels * params_per_channel,
    )


def _layer_norm(channels: int, resolution: int) -> Primitive:
    return _elementwise(channels, resolution, num_inputs=1, num_params=2 * channels)


def _linear(cin: int, cout: int) -> Primitive:
    return Primitive(
        kind="linear",
        in_channels=cin,
        out_channels=cout,
        reads=cin,
        writes=cout,
        num_macs=cin * cout,
        num_params=cin * cout + cout,
    )


def _pool(channels: int, resolution: int) -> Primitive:
    return Primitive(
        kind="elementwise",
        in_channels=channels,
        out_channels=channels,
        reads=channels * resolution**2,
        writes=channels,
    )


def _quadratic(branch: Primitive, resolution: int) -> list[Primitive]:
    """`a(x) * b(x) + c(x)`: three first-order branches, a product and a sum."""
    product_or_sum = _elementwise(branch.out_channels, resolution, num_inputs=2)
    return [branch, branch, branch, product_or_sum, product_or_sum]


def _patch_stem(spec: OpSpec) -> list[Primitive]:
    cin, cout = spec.in_channels, spec.out_channels
    conv = _conv(cin, cout, spec.kernel_size, spec.resolution, spec.stride, bias=True)
    return [conv, _layer_norm(cout, spec.out_resolution)]


def _downsample(spec: OpSpec) -> list[Primitive]:
    cin, cout = spec.in_channels, spec.out_channels
    conv = _conv(cin, cout, spec.kernel_size, spec.resolution, spec.stride, bias=True)
    return [_layer_norm(cin, spec.resolution), conv]


def _quadratic_depthwise(spec: OpSpec) -> list[Primitive]:
    channels, size = spec.in_channels, spec.resolution
    branch = _depthwise(channels, spec.kernel_size, size, stride=1, bias=True)
    residual = _elementwise(channels, size, num_inputs=2)
    return [
        _layer_norm(channels, size),
        *_quadratic(branch, size),
        _folded(channels, params_per_channel=1),
        residual,
    ]


def _feed_forward(spec: OpSpec) -> list[Primitive]:
    channels, hidden, size = spec.in_channels, spec.hidden_channels, spec.resolution
    expand = _conv(channels, hidden, 1, size, stride=1, bias=True)
    project = _conv(hidden, channels, 1, size, stride=1, bias=True)
    return [
        _layer_norm(channels, size),
        *(_quadratic(expand, size) if spec.num_quadratic >= 1 else [expand]),
        _elementwise(hidden, size, num_inputs=1),
        *(_quadratic(project, size) if spec.num_quadratic >= 2 else [project]),
        _folded(channels, params_per_channel=1),
        _elementwise(channels, size, num_inputs=2),
    ]


def _quadratic_convnext(spec: OpSpec) -> list[Primitive]:
    channels, hidden, size = spec.in_channels, spec.hidden_channels, spec.resolution
    branch = _depthwise(channels, spec.kernel_size, size, stride=1, bias=True)
    return [
        *_quadratic(branch, size),
        _layer_norm(channels, size),
        _conv(channels, hidden, 1, size, stride=1, bias=True),
        _elementwise(hidden, size, num_inputs=1),
        _conv(hidden, channels, 1, size, stride=1, bias=True),
        _folded(channels, params_per_channel=1),
        _elementwise(channels, size, num_inputs=2),
    ]


def _norm_head(spec: OpSpec) -> list[Primitive]:
    channels = spec.in_channels
    return [
        _pool(channels, spec.resolution),
        _layer_norm(channels, 1),
        _linear(channels, spec.out_channels),
    ]


def _linear_head(spec: OpSpec) -> list[Primitive]:
    pool = _pool(spec.in_channels, spec.resolution)
    return [pool, _linear(spec.in_channels, spec.out_channels)]


def _conv_bn(spec: OpSpec) -> list[Primitive]:
    cin, cout = spec.in_channels, spec.out_channels
    conv = _conv(cin, cout, spec.kernel_size, spec.resolution, spec.stride, bias=False)
    return [conv, _folded(cout, params_per_channel=2)]


def _mbconv(spec: OpSpec) -> list[Primitive]:
    cin, cout, hidden = spec.in_channels, spec.out_channels, spec.hidden_channels
    size, out_size = spec.resolution, spec.out_resolution
    primitives = []
    if spec.expand_ratio != 1:
        expand = _conv(cin, hidden, 1, size, stride=1, bias=False)
        primitives += [expand, _folded(hidden, params_per_channel=2)]
    depthwise = _depthwise(hidden, spec.kernel_size, size, spec.stride, bias=False)
    activation = []
    if spec.kind == "quadratic_mbconv":  # ReLU6 after a sum, into which runtimes fold nothing
        activation = [_elementwise(hidden, out_size, num_inputs=1)]
    primitives += [
        *(_quadratic(depthwise, out_size) if activation else [depthwise]),
        _folded(hidden, params_per_channel=2),
        *activation,
        _conv(hidden, cout, 1, out_size, stride=1, bias=False),
        _folded(cout, params_per_channel=2),
    ]
    if has_residual(spec):
        primitives.append(_elementwise(cout, out_size, num_inputs=2))
    return primitives


def has_residual(spec: OpSpec) -> bool:
    """Whether an inverted bottleneck adds its input: if input and output have the same shape."""
    return spec.stride == 1 and spec.in_channels == spec.out_channels


PRIMITIVES: dict[str, Callable[[OpSpec], list[Primitive]]] = {
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


def primitives(spec: OpSpec) -> list[Primitive]:
    """The kernel launches of an operation at batch 1.

    Raises:
        QuadranasError: the kind of operation is not in `PRIMITIVES`, as that of a part of a user's
            own model, whose kernels only its code knows.
    """
    if spec.kind not in PRIMITIVES:
        raise QuadranasError(f"cannot count the primitives of operation kind {spec.kind!r}")
    return list(_primitives(PRIMITIVES[spec.kind], spec))


@lru_cache(maxsize=1 << 15)
def _primitives(
    count: Callable[[OpSpec], Iterable[Primitive]], spec: OpSpec
) -> tuple[Primitive, ...]:
    """They are counted for the same operations again and again while a space is searched."""
    return tuple(count(spec))


def count_params(ops: OpSpec | Architecture | Iterable[OpSpec]) -> int:
    """The number of trainable parameters of an operation, several, or an architecture.

    Raises:
        QuadranasError: an architecture with replaced layers, or an unknown kind of operation.
    """
    return sum(
        sum(p.num_params for p in primitives(op)) if op.own is None else op.own.params
        for op in _as_ops(ops)
    )


def count_macs(ops: OpSpec | Architecture | Iterable[OpSpec]) -> int:
    """The number of multiply-accumulates at batch 1; arguments and errors of `count_params`."""
    return sum(
        sum(p.num_macs for p in primitives(op)) if op.own is None else op.own.macs
        for op in _as_ops(ops)
    )


def _as_ops(ops: OpSpec | Architecture | Iterable[OpSpec]) -> Iterable[OpSpec]:
    if isinstance(ops, OpSpec):
        return (ops,)
    if isinstance(ops, Architecture) and ops.changes:
        raise QuadranasError(
            f"{ops.name} has {len(ops.changes)} replaced layers, which cannot be counted from its "
            "operations",
            "Count them with: quadranas profile MODEL --memory",
        )
    return ops.ops() if isinstance(ops, Architecture) else ops
