"""The reference models as architectures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadranas.errors import QuadranasError
from quadranas.space.operation import MAX_CHANNELS, MAX_RESOLUTION
from quadranas.space.reference import REFERENCE_MODELS, reference_architecture


def test_the_five_models_and_their_quadratic_variants() -> None:
    sizes = ("25_t", "25_b", "36_t", "36_s", "36_b")
    expected = {f"quadranet{size}{suffix}" for size in sizes for suffix in ("", "_q1", "_q12")}
    assert set(REFERENCE_MODELS) == expected
    assert len(REFERENCE_MODELS) == 15


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_layout(name: str) -> None:
    network = reference_architecture(name)
    size, variant, *suffix = name.removeprefix("quadranet").split("_")
    depths = {"25": (2, 3, 18, 2), "36": (3, 3, 27, 3)}[size]
    width = {"t": 64, "s": 96, "b": 128}[variant]
    num_quadratic = {"": 0, "q1": 1, "q12": 2}["".join(suffix)]

    expected = []
    for stage, depth in enumerate(depths, start=1):
        entry = "patch_stem" if stage == 1 else "downsample"
        expected.append((f"stage{stage}_entry", [entry]))
        parts = ["quadratic_depthwise", "feed_forward"]
        expected += [(f"stage{stage}_block{number + 1}", parts) for number in range(depth)]
    expected.append(("head", ["norm_head"]))
    assert [(b.name, [op.kind for op in b.ops]) for b in network.blocks] == expected

    widths = {block.name: block.ops[0].out_channels for block in network.blocks}
    assert [widths[f"stage{s}_entry"] for s in (1, 2, 3, 4)] == [width * m for m in (1, 2, 4, 8)]
    assert {op.num_quadratic for op in network.ops() if op.kind == "feed_forward"} == {
        num_quadratic
    }
    assert {op.expand_ratio for op in network.ops() if op.kind == "feed_forward"} == {4}
    kernels = {op.kernel_size for op in network.ops() if op.kind == "quadratic_depthwise"}
    assert kernels == {7}
    assert network.layer_scale == 1e-6
    assert network.space == ""


@given(
    name=st.sampled_from(REFERENCE_MODELS),
    num_classes=st.integers(1, MAX_CHANNELS),
    multiple=st.integers(1, MAX_RESOLUTION // 32),
)
def test_any_class_count_and_any_multiple_of_32(
    name: str, num_classes: int, multiple: int
) -> None:
    network = reference_architecture(name, num_classes=num_classes, resolution=32 * multiple)
    *_, head = network.ops()
    assert (head.out_channels, head.resolution) == (num_classes, multiple)
    at_default = reference_architecture(name)
    adapted = at_default.adapted(num_classes=num_classes, resolution=32 * multiple)
    assert adapted == network
    assert adapted.adapted(num_classes=1000, resolution=224) == at_default


@pytest.mark.parametrize(
    ("resolution", "suggestion"),
    [
        (225, "Use 224 or 256."),
        (100, "Use 96 or 128."),
        (31, "Use 32 or 64."),
        (0, "Use 32 or 64."),
        (-32, "Use 32 or 64."),
        (8193, "Use 8192."),
        (10**9, "Use 8192."),
    ],
)
def test_other_resolutions_are_refused_with_the_nearest(resolution: int, suggestion: str) -> None:
    with pytest.raises(QuadranasError) as caught:
        reference_architecture("quadranet25_t", resolution=resolution)
    assert caught.value.message == (
        f"resolution {resolution} does not fit quadranet25_t: it must be a multiple of 32, "
        "at most 8192"
    )
    assert caught.value.hint == suggestion


@pytest.mark.parametrize("num_classes", [0, -1, MAX_CHANNELS + 1])
def test_impossible_class_counts_are_refused(num_classes: int) -> None:
    message = f"{num_classes} classes do not fit quadranet25_t: the number must be 1 to 65536"
    with pytest.raises(QuadranasError, match=message):
        reference_architecture("quadranet25_t", num_classes=num_classes)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(QuadranasError) as caught:
        reference_architecture("quadranet25t")
    names = ", ".join(sorted(REFERENCE_MODELS))
    assert str(caught.value) == (
        f"unknown model 'quadranet25t'; accepted: {names}; did you mean 'quadranet25_t'?"
    )
