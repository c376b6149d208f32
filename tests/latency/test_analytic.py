"""The analytic device models, against plain arithmetic and published latencies."""

import pytest

from quadranas.architecture import OpSpec
from quadranas.cost import count_macs
from quadranas.latency.analytic import op_latency_ms
from quadranas.latency.device import AnalyticModel, load_device

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


def test_a_classifiers_weights_have_a_bandwidth_of_their_own_on_the_vpu() -> None:
    spec = OpSpec(kind="linear_head", in_channels=1280, out_channels=1000, resolution=7)
    pool = launch_us(0, 1280 * 49 + 1280, 1, 4.3, 2, 23)
    weights_us = (1280 * 1000 + 1000) * 2 / 8.5 / 1e3
    linear = (1280 + 1000) * 2 / 4.3 / 1e3 + weights_us + 23
    model, precision = model_of("vpu")
    assert op_latency_ms(spec, model, precision) == pytest.approx((pool + linear) / 1e3)


def test_a100_latencies_lie_in_the_range_of_the_paper() -> None:
    """Searched networks of 279 to 948 M MACs took 1.9 to 2.9 ms (arXiv:2311.17956, Table III)."""
    from quadranas.space import load_space

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
