"""The analytic device models, against plain arithmetic and published latencies."""

from unittest.mock import patch

import pytest

from quadranas.latency.analytic import op_latency_ms
from quadranas.latency.device import AnalyticModel, load_device
from quadranas.space.cost import Primitive, count_macs
from quadranas.space.operation import OpSpec
from quadranas.space.space_file import load_space

# MobileNetV2's blocks: expansion, channels, repeats, stride (arXiv:1801.04381, Table 2).
MOBILENET_V2 = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


def model_of(name: str) -> tuple[AnalyticModel, str]:
    device = load_device(name)
    assert device.analytic is not None
    return device.analytic, device.precision


def mobilenet_v2() -> list[OpSpec]:
    ops = [
        OpSpec(
            kind="conv_bn", in_channels=3, out_channels=32, kernel_size=3, stride=2, resolution=224
        )
    ]
    for ratio, channels, repeats, stride in MOBILENET_V2:
        for index in range(repeats):
            ops.append(
                OpSpec(
                    kind="mbconv",
                    in_channels=ops[-1].out_channels,
                    out_channels=channels,
                    kernel_size=3,
                    stride=stride if index == 0 else 1,
                    expand_ratio=ratio,
                    resolution=ops[-1].out_resolution,
                )
            )
    ops.append(OpSpec(kind="conv_bn", in_channels=320, out_channels=1280, resolution=7))
    ops.append(OpSpec(kind="linear_head", in_channels=1280, out_channels=1000, resolution=7))
    return ops


@pytest.mark.parametrize(
    ("name", "published_ms", "error"), [("cpu", 46.0, 0.1), ("vpu", 22.7, 0.2)]
)
def test_mobilenet_v2_is_near_its_published_latency(
    name: str, published_ms: float, error: float
) -> None:
    """The figures are nn-Meter's for the Cortex-A76 and the Myriad."""
    ops = mobilenet_v2()
    assert count_macs(ops) == pytest.approx(300.8e6, rel=1e-3)
    model, precision = model_of(name)
    predicted = sum(op_latency_ms(op, model, precision) for op in ops)
    assert predicted == pytest.approx(published_ms, rel=error)


def launch_us(
    macs: float, elements: float, throughput: float, bandwidth: float, size: int, overhead: float
) -> float:
    """`max(MACs / P, bytes / B) + o` with P in GMAC/s and B in GB/s."""
    compute_us = macs / throughput / 1e3 if macs else 0.0
    return max(compute_us, elements * size / bandwidth / 1e3) + overhead


def test_a_quadratic_convolution_on_the_cpu_is_its_launches() -> None:
    """LayerNorm, three depthwise convolutions, product, sum, residual; layer scale is folded."""
    spec = OpSpec(
        kind="quadratic_depthwise", in_channels=40, out_channels=40, kernel_size=5, resolution=56
    )
    pixels, channels = 56 * 56, 40
    image = pixels * channels
    saturated = 2.47 * channels / (channels + 11.5)
    norm = launch_us(0, 2 * image + 2 * channels, 1, 9.9, 4, 17)
    branch = launch_us(image * 25, 2 * image + channels * 26, saturated, 9.9, 4, 17)
    pairwise = launch_us(0, 3 * image, 1, 9.9, 4, 17)
    expected_ms = (norm + 3 * branch + 3 * pairwise) / 1e3
    model, precision = model_of("cpu")
    assert op_latency_ms(spec, model, precision) == pytest.approx(expected_ms)


def test_a_feed_forward_part_on_the_vpu_is_its_launches() -> None:
    spec = OpSpec(
        kind="feed_forward", in_channels=80, out_channels=80, expand_ratio=4, resolution=28
    )
    pixels, channels, hidden = 28 * 28, 80, 320
    image, wide = pixels * channels, pixels * hidden

    def saturated(inputs: int) -> float:
        return 72 * inputs / (inputs + 1.5)

    expected_us = (
        launch_us(0, 2 * image + 2 * channels, 1, 4.3, 2, 23)
        + launch_us(
            image * hidden, image + wide + channels * hidden + hidden, saturated(80), 4.3, 2, 23
        )
        + launch_us(0, 2 * wide, 1, 4.3, 2, 23)
        + launch_us(
            wide * channels,
            image + wide + channels * hidden + channels,
            saturated(320),
            4.3,
            2,
            23,
        )
        + launch_us(0, 3 * image, 1, 4.3, 2, 23)
    )
    model, precision = model_of("vpu")
    assert op_latency_ms(spec, model, precision) == pytest.approx(expected_us / 1e3)


def test_inverted_bottlenecks_on_the_gpu_are_their_launches() -> None:
    """BatchNorm and ReLU6 are folded; besides the convolutions only the residual is a launch."""
    channels, hidden, image, wide = 24, 144, 56 * 56 * 24, 56 * 56 * 144
    expand = launch_us(wide * channels, image + wide + channels * hidden, 156000, 1555, 2, 11)
    depthwise = launch_us(wide * 25, 2 * wide + 25 * hidden, 39000, 1555, 2, 11)
    project = launch_us(wide * channels, image + wide + channels * hidden, 156000, 1555, 2, 11)
    residual = launch_us(0, 3 * image, 1, 1555, 2, 11)
    model, precision = model_of("gpu")

    def latency_us(out_channels: int, stride: int = 1) -> float:
        spec = OpSpec(
            kind="mbconv",
            in_channels=channels,
            out_channels=out_channels,
            kernel_size=5,
            stride=stride,
            expand_ratio=6,
            resolution=56,
        )
        return op_latency_ms(spec, model, precision) * 1e3

    assert latency_us(channels) == pytest.approx(expand + depthwise + project + residual)
    assert latency_us(channels, stride=2) < expand + depthwise + project
    wider = launch_us(
        56 * 56 * hidden * 32, wide + 56 * 56 * 32 + hidden * 32, 156000, 1555, 2, 11
    )
    assert latency_us(32) == pytest.approx(expand + depthwise + wider)


def test_patches_on_the_vpu_are_their_launches() -> None:
    """The stem normalises after its convolution, a downsampling layer before."""
    model, precision = model_of("vpu")
    stem = OpSpec(
        kind="patch_stem", in_channels=3, out_channels=40, kernel_size=4, stride=4, resolution=224
    )
    shrunk = 56 * 56 * 40
    conv = launch_us(shrunk * 48, 3 * 224 * 224 + shrunk + 48 * 40 + 40, 105 * 3 / 4.5, 4.3, 2, 23)
    norm = launch_us(0, 2 * shrunk + 2 * 40, 1, 4.3, 2, 23)
    assert op_latency_ms(stem, model, precision) == pytest.approx((conv + norm) / 1e3)

    down = OpSpec(
        kind="downsample", in_channels=40, out_channels=80, kernel_size=2, stride=2, resolution=56
    )
    halved = 28 * 28 * 80
    conv = launch_us(halved * 160, shrunk + halved + 160 * 80 + 80, 105 * 40 / 41.5, 4.3, 2, 23)
    assert op_latency_ms(down, model, precision) == pytest.approx((conv + norm) / 1e3)


@pytest.mark.parametrize("name", ["cpu", "gpu", "vpu"])
def test_what_moves_memory_is_priced_and_what_is_folded_is_free(name: str) -> None:
    """A search would learn to use whatever is given away."""
    model, precision = model_of(name)
    norm = Primitive(kind="elementwise", in_channels=64, out_channels=64, reads=64, writes=64)
    folded = Primitive(
        kind="folded", in_channels=64, out_channels=64, reads=0, writes=0, num_params=128
    )
    for primitive, free in ((norm, False), (folded, True)):
        with patch.dict("quadranas.space.cost.PRIMITIVES", conv_bn=lambda _, p=primitive: [p]):
            spec = OpSpec(kind="conv_bn", in_channels=64, out_channels=64, resolution=1)
            priced_us = op_latency_ms(spec, model, precision) * 1e3
        assert priced_us == 0 or not free
        assert priced_us > model.overhead_us or free


def test_a_classifiers_weights_have_a_bandwidth_of_their_own_on_the_vpu() -> None:
    spec = OpSpec(kind="linear_head", in_channels=1280, out_channels=1000, resolution=7)
    pool = launch_us(0, 1280 * 49 + 1280, 1, 4.3, 2, 23)
    weights_us = (1280 * 1000 + 1000) * 2 / 8.5 / 1e3
    linear = (1280 + 1000) * 2 / 4.3 / 1e3 + weights_us + 23
    model, precision = model_of("vpu")
    assert op_latency_ms(spec, model, precision) == pytest.approx((pool + linear) / 1e3)


def test_a100_latencies_lie_in_the_range_of_the_paper() -> None:
    """Searched networks of 279 to 948 M MACs took 1.9 to 2.9 ms (arXiv:2311.17956, Table III)."""
    space = load_space("quadranet-mobile")
    model, precision = model_of("gpu")
    low, high = (
        sum(
            op_latency_ms(op, model, precision)
            for op in space.extreme(count_macs, largest=big).ops()
        )
        for big in (False, True)
    )
    assert 1.0 < low < 1.9
    assert 2.9 < high < 4.0
