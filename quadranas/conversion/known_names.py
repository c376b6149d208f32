"""The names of tensors in checkpoints of well-known networks, and those of this package.

Sources: the published checkpoints of QuadraNet (arXiv:2311.17956), and the official ones, timm's
and torchvision's of ConvNeXt (arXiv:2201.03545) and MobileNetV2 (arXiv:1801.04381).
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeAlias

Place: TypeAlias = Callable[[re.Match[str]], str]
"""The name of a block of this package, from a match of its name in a checkpoint."""

Rules: TypeAlias = Mapping[str, str | Callable[[re.Match[str]], str]]
"""Replacements of the beginnings of names, by their patterns."""

Rename: TypeAlias = Callable[[Collection[str]], dict[str, str]]
"""The names of this package for those of a checkpoint; unknown names stay as they are."""

MOBILENET_DEPTHS = (1, 2, 3, 4, 3, 3, 1)
"""Number of blocks in each stage of MobileNetV2 (Table 2)."""


def _replaced(rules: Rules) -> Rename:
    """Rename by the first pattern that matches."""

    def renamed(name: str) -> str:
        for pattern, target in rules.items():
            own, number = re.subn(f"^{pattern}", target, name)
            if number:
                return own
        return name

    return lambda names: {name: renamed(name) for name in names}


def _stage(match: re.Match[str]) -> str:
    """The name of a block by two indices from 0, that of the stage and that of the block."""
    return f"blocks.stage{int(match[1]) + 1}_block{int(match[2]) + 1}."


def _entry(match: re.Match[str]) -> str:
    """The name of a stage's downsampling by the stage's index from 0."""
    return f"blocks.stage{int(match[1]) + 1}_entry.downsample."


def _even_entry(match: re.Match[str]) -> str:
    """The name of a stage's downsampling by its number among stages and downsamplings."""
    return f"blocks.stage{int(match[1]) // 2 + 1}_entry.downsample."


def _part(place: Place, part: str) -> Callable[[re.Match[str]], str]:
    return lambda match: place(match) + part


PATCHES: Rules = {
    r"downsample_layers\.0\.0\.": "blocks.stage1_entry.patch_stem.conv.",
    r"downsample_layers\.0\.1\.": "blocks.stage1_entry.patch_stem.norm.",
    r"downsample_layers\.(\d+)\.0\.": _part(_entry, "norm."),
    r"downsample_layers\.(\d+)\.1\.": _part(_entry, "conv."),
    r"norm\.": "blocks.head.norm_head.norm.",
    r"head\.(?=weight|bias)": "blocks.head.norm_head.linear.",
}
"""Stem, downsampling and head of QuadraNet and ConvNeXt under the official names."""

BLOCK = r"stages\.(\d+)\.(\d+)\."
QUADRANET = {
    f"{BLOCK}{part}": _part(_stage, own)
    for part, own in {
        r"norm1\.": "quadratic_depthwise.norm.",
        r"QuadraConv\.conv1\.": "quadratic_depthwise.conv.a.",
        r"QuadraConv\.conv2\.": "quadratic_depthwise.conv.b.",
        r"QuadraConv\.conv3\.": "quadratic_depthwise.conv.c.",
        r"norm2\.": "feed_forward.norm.",
        r"pwconv1\.": "feed_forward.expand.",
        r"pwconv2\.": "feed_forward.project.",
        "gamma1$": "quadratic_depthwise.gamma",
        "gamma2$": "feed_forward.gamma",
    }.items()
}


def _convnext(block: str, parts: Iterable[str], place: Place = _stage) -> Rules:
    """Rules for the parts of ConvNeXt's blocks: depthwise, norm, two linear layers, layer scale.

    Args:
        block: the pattern of a block's name.
        parts: patterns of the names of its parts.
        place: the name of the block.
    """
    own = ("conv.c.", "norm.", "expand.", "project.", "gamma")
    return {
        f"{block}{part}": _part(place, f"quadratic_convnext.{name}")
        for part, name in zip(parts, own, strict=True)
    }


CONVNEXT = _convnext(BLOCK, (r"dwconv\.", r"norm\.", r"pwconv1\.", r"pwconv2\.", "gamma$"))

TIMM_BLOCK = r"stages\.(\d+)\.blocks\.(\d+)\."
TIMM_CONVNEXT = _convnext(
    TIMM_BLOCK, (r"conv_dw\.", r"norm\.", r"mlp\.fc1\.", r"mlp\.fc2\.", "gamma$")
)
TIMM_PATCHES: Rules = {
    r"stem\.0\.": "blocks.stage1_entry.patch_stem.conv.",
    r"stem\.1\.": "blocks.stage1_entry.patch_stem.norm.",
    r"stages\.(\d+)\.downsample\.0\.": _part(_entry, "norm."),
    r"stages\.(\d+)\.downsample\.1\.": _part(_entry, "conv."),
    r"head\.norm\.": "blocks.head.norm_head.norm.",
    r"head\.fc\.": "blocks.head.norm_head.linear.",
}


TORCHVISION_BLOCK = r"features\.(\d*[13579])\.(\d+)\."
TORCHVISION_CONVNEXT = _convnext(
    TORCHVISION_BLOCK,
    (r"block\.0\.", r"block\.2\.", r"block\.3\.", r"block\.5\.", "layer_scale$"),
    lambda match: f"blocks.stage{(int(match[1]) + 1) // 2}_block{int(match[2]) + 1}.",
)
TORCHVISION_ENTRY = r"features\.(\d*[02468])\."
TORCHVISION_PATCHES: Rules = {
    r"features\.0\.0\.": "blocks.stage1_entry.patch_stem.conv.",
    r"features\.0\.1\.": "blocks.stage1_entry.patch_stem.norm.",
    rf"{TORCHVISION_ENTRY}0\.": _part(_even_entry, "norm."),
    rf"{TORCHVISION_ENTRY}1\.": _part(_even_entry, "conv."),
    r"classifier\.0\.": "blocks.head.norm_head.norm.",
    r"classifier\.2\.": "blocks.head.norm_head.linear.",
}
"""torchvision numbers stages (odd) and the downsampling before them (even) together."""


MOBILENET_ENDS = {
    r"(?:conv_stem|features\.0\.0)\.": "blocks.stem_block1.conv_bn.0.",
    r"(?:bn1|features\.0\.1)\.": "blocks.stem_block1.conv_bn.1.",
    r"(?:conv_head|features\.18\.0)\.": "blocks.last_block1.conv_bn.0.",
    r"(?:bn2|features\.18\.1)\.": "blocks.last_block1.conv_bn.1.",
    r"classifier\.(?:1\.)?(?=weight|bias)": "blocks.head.linear_head.linear.",
}
"""Stem, last convolution and head of MobileNetV2 by the names of timm and torchvision."""

TIMM_PARTS = (
    {"conv_dw": 0, "bn1": 1, "conv_pw": 3, "bn2": 4},
    {"conv_pw": 0, "bn1": 1, "conv_dw": 3, "bn2": 4, "conv_pwl": 6, "bn3": 7},
)
TORCHVISION_PARTS = (
    {"0.0": 0, "0.1": 1, "1": 3, "2": 4},
    {"0.0": 0, "0.1": 1, "1.0": 3, "1.1": 4, "2": 6, "3": 7},
)
"""The layers of an inverted bottleneck without and with an expansion, and their indices here."""


def _timm_mobilenet(names: Collection[str]) -> dict[str, str]:
    """With the indices of stage and block."""
    own = _replaced(MOBILENET_ENDS)(names)
    for name in names:
        found = re.match(r"(blocks\.(\d+)\.(\d+)\.)(\w+)\.(\w+)$", name)
        if found:
            layers = TIMM_PARTS[f"{found[1]}conv_pwl.weight" in names]
            place = int(found[2]) + 1, int(found[3]) + 1
            own[name] = _bottleneck(place, layers.get(found[4]), found[5]) or name
    return own


def _torchvision_mobilenet(names: Collection[str]) -> dict[str, str]:
    """With the index of the block in the whole network."""
    places = [
        (stage, number)
        for stage, depth in enumerate(MOBILENET_DEPTHS, 1)
        for number in range(1, depth + 1)
    ]
    own = _replaced(MOBILENET_ENDS)(names)
    for name in names:
        found = re.match(r"(features\.(\d+)\.conv\.)(\d(?:\.\d)?)\.(\w+)$", name)
        if found and 1 <= int(found[2]) <= len(places):
            layers = TORCHVISION_PARTS[f"{found[1]}3.weight" in names]
            place = places[int(found[2]) - 1]
            own[name] = _bottleneck(place, layers.get(found[3]), found[4]) or name
    return own


def _bottleneck(place: tuple[int, int], layer: int | None, leaf: str) -> str:
    """The name of a tensor of an inverted bottleneck; empty if there is no such layer."""
    stage, number = place
    return (
        "" if layer is None else f"blocks.stage{stage}_block{number}.mbconv.layers.{layer}.{leaf}"
    )


FAMILIES: tuple[tuple[str, str, Rename], ...] = (
    ("QuadraNet", r"blocks\.\w+\.(?:quadratic_depthwise|feed_forward)\.", _replaced({})),
    ("QuadraNet", rf"{BLOCK}QuadraConv\.", _replaced({**PATCHES, **QUADRANET})),
    ("quadratic ConvNeXt", r"blocks\.\w+\.quadratic_convnext\.", _replaced({})),
    ("ConvNeXt", rf"{BLOCK}dwconv\.", _replaced({**PATCHES, **CONVNEXT})),
    ("ConvNeXt", rf"{TIMM_BLOCK}conv_dw\.", _replaced({**TIMM_PATCHES, **TIMM_CONVNEXT})),
    (
        "ConvNeXt",
        rf"{TORCHVISION_BLOCK}block\.0\.",
        _replaced({**TORCHVISION_PATCHES, **TORCHVISION_CONVNEXT}),
    ),
    ("MobileNetV2", r"blocks\.\d+\.\d+\.conv_pwl\.", _timm_mobilenet),
    ("MobileNetV2", r"features\.\d+\.conv\.0\.0\.", _torchvision_mobilenet),
)
"""Name of each family, a pattern that names of its tensors alone match, and their renaming."""
