"""Feature maps: the outputs of a network's stages, with their channels and strides."""

from dataclasses import dataclass

from quadranas.space.architecture import Architecture


@dataclass(frozen=True)
class FeatureMap:
    """The output of a stage.

    Args:
        block: the name of the stage's last block.
        channels: number of channels.
        stride: ratio of the input image's height and width to those of the map.
    """

    block: str
    channels: int
    stride: int


def feature_maps(architecture: Architecture) -> tuple[FeatureMap, ...]:
    """The output of every stage, highest resolution first.

    A stage is a run of blocks at one resolution: it ends before the next block that downsamples,
    or before the block that holds the head.
    """
    body = architecture.blocks[:-1]
    maps: list[FeatureMap] = []
    stride = 1
    for block in body:
        for op in block.ops:
            stride *= op.stride
        if maps and maps[-1].stride == stride:
            maps.pop()
        maps.append(FeatureMap(block.name, block.ops[-1].out_channels, stride))
    return tuple(maps)
