"""The reference models of QuadraNet as architectures.

Source: QuadraNet, Xu et al., ASP-DAC 2024 (arXiv:2311.17956), Tables I and V.
"""

from quadranas.errors import unknown
from quadranas.space.architecture import Architecture, Block, check_num_classes, check_resolution
from quadranas.space.operation import OpSpec

DEPTHS = {"25": (2, 3, 18, 2), "36": (3, 3, 27, 3)}
WIDTHS = {"quadranet25_t": 64, "quadranet25_b": 128, "quadranet36_t": 64, "quadranet36_s": 96}
WIDTHS["quadranet36_b"] = 128
NUM_QUADRATIC = {"": 0, "_q1": 1, "_q12": 2}
REFERENCE_MODELS = tuple(f"{name}{suffix}" for name in WIDTHS for suffix in NUM_QUADRATIC)
LAYER_SCALE = 1e-6


def reference_architecture(
    name: str, *, num_classes: int = 1000, resolution: int = 224
) -> Architecture:
    """A reference model: kernel 7, expansion 4, four stages of widths C, 2C, 4C, 8C.

    Args:
        name: one of `REFERENCE_MODELS`; the suffix gives the quadratic ones among the two
            pointwise layers of each feed-forward part (Table V).
        resolution: input height and width in pixels, a multiple of 32.

    Raises:
        QuadranasError: unknown name, a resolution that is not a multiple of 32, or a number of
            classes out of range.
    """
    if name not in REFERENCE_MODELS:
        raise unknown("model", name, REFERENCE_MODELS)
    base = next(base for base in WIDTHS if name.startswith(base))
    num_quadratic = NUM_QUADRATIC[name.removeprefix(base)]
    depths = DEPTHS[base.removeprefix("quadranet")[:2]]
    _check_stride(name, resolution)
    check_num_classes(num_classes, name)
    blocks: list[Block] = []
    channels, size = 3, resolution
    for stage, depth in enumerate(depths, start=1):
        width = WIDTHS[base] * 2 ** (stage - 1)
        patch = 4 if stage == 1 else 2
        entry = OpSpec(
            kind="patch_stem" if stage == 1 else "downsample",
            in_channels=channels,
            out_channels=width,
            kernel_size=patch,
            stride=patch,
            resolution=size,
        )
        blocks.append(Block(name=f"stage{stage}_entry", ops=(entry,)))
        channels, size = width, size // patch
        blocks += [
            Block(name=f"stage{stage}_block{index}", ops=_quadrablock(width, size, num_quadratic))
            for index in range(1, depth + 1)
        ]
    head = OpSpec(
        kind="norm_head", in_channels=channels, out_channels=num_classes, resolution=size
    )
    return Architecture(
        name=name,
        resolution=resolution,
        num_classes=num_classes,
        layer_scale=LAYER_SCALE,
        blocks=(*blocks, Block(name="head", ops=(head,))),
    )


def _quadrablock(channels: int, resolution: int, num_quadratic: int) -> tuple[OpSpec, OpSpec]:
    shape = {"in_channels": channels, "out_channels": channels, "resolution": resolution}
    conv = OpSpec(kind="quadratic_depthwise", kernel_size=7, **shape)
    return conv, OpSpec(kind="feed_forward", expand_ratio=4, num_quadratic=num_quadratic, **shape)


def _check_stride(name: str, resolution: int) -> None:
    # A stand-in with the total stride of the four stages: their OpSpecs cannot be built for a
    # resolution that does not fit.
    stem = OpSpec(
        kind="patch_stem", in_channels=3, out_channels=1, resolution=32, kernel_size=32, stride=32
    )
    check_resolution(resolution, (stem,), name)
