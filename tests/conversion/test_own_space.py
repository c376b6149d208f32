"""Which parts of a user's own model may change, and one message for what cannot."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quadranas.conversion.own_space import own_space
from quadranas.errors import QuadranasError
from quadranas.network.own_model import build_own
from quadranas.space.own_space_file import OwnSpaceFile
from tests.own_models import (
    SIZE,
    WHERE,
    BasicBlock,
    Branch,
    Branches,
    InvertedResidual,
    MobileNet,
    build,
)

EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)


def made(model: nn.Module, where: Any = "*", **options: Any) -> OwnSpaceFile:
    given = {"name": "mine", "source": "test"} | options
    return own_space(model, given.pop("example", EXAMPLE), where, **given)


def summary(file: OwnSpaceFile) -> dict[str, tuple[bool, list[str]]]:
    """Per part whether it may be skipped, and its candidates in words."""
    return {
        block.layer: (
            block.optional,
            [" ".join(map(str, one.changes)) or "whole" for one in block.candidates],
        )
        for block in file.blocks
    }


def test_resnet() -> None:
    assert summary(made(build("resnet"), WHERE["resnet"])) == {
        "layer1.0": (True, ["h4", "h6", "whole"]),
        "layer1.1": (True, ["h4", "h6", "whole"]),
        "layer2.0": (False, ["h8", "h12", "whole"]),
        "layer2.1": (True, ["h8", "h8 adapted", "h12", "h12 adapted", "whole", "adapted"]),
    }
    assert summary(made(build("resnet"), {"layer1.0": "hidden"}, widths=(0.25, 0.5))) == {
        "layer1.0": (False, ["h2", "h4", "whole"])
    }


def test_mobilenet() -> None:
    file = made(build("mobilenet"), "features", widths=[0.5])
    assert not any(block.added for block in file.blocks)
    assert summary(file) == {
        "features.1": (True, ["h8 k3", "h8", "k3", "whole"]),
        "features.2.conv": (False, ["h8 k3", "h8", "k3", "whole"]),
        "features.3": (True, ["h16", "whole"]),
    }


def test_convnext() -> None:
    found = summary(made(build("convnext"), WHERE["convnext"], widths=[0.5]))
    assert found["blocks.0"] == (True, ["h8 k3", "h8 k5", "h8", "k3", "k5", "whole"])
    assert len(found["blocks.1"][1]) == 12
    assert found["blocks.1"][1][-1] == "quadratic"


@torch.no_grad()
def test_residuals_that_the_code_around_a_block_adds() -> None:
    model = Branches().eval()
    file = made(model, "branches", widths=[0.5])
    both = (True, ["h8", "whole"])
    assert summary(file) == {"branches.0": both, "branches.1": both}
    assert all(block.added for block in file.blocks)
    space = file.space()
    network = space.architecture(space.original_choices() | {"branches_0": None})
    x = torch.randn(2, 3, SIZE, SIZE)
    stem = model.stem(x)
    body = stem + model.branches[1](stem)
    expected = model.head(body.mean([-2, -1]))
    torch.testing.assert_close(build_own(network)(x), expected)
    nested = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Pair(), nn.Flatten(1), nn.LazyLinear(2))
    nested(x)
    skipped = (True, ["whole"])
    assert summary(made(nested, {"1": "skip"})) == {"1.first": skipped, "1.second": skipped}


class Pair(nn.Module):
    """Two branches in a module that keeps the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Branch(8), Branch(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        return x + self.second(x)  # type: ignore[no-any-return]


def test_counts_add_up_to_the_model() -> None:
    model = build("mobilenet")
    file = made(model, "features")
    wholes = [one for block in file.blocks for one in block.candidates if not one.changes]
    assert file.rest_params + sum(one.params for one in wholes) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    smallest = file.space().extreme(lambda op: op.own.params if op.own else 0, largest=False)
    built = build_own(smallest)
    assert sum(p.numel() for p in built.parameters()) == sum(
        op.own.params for op in smallest.ops() if op.own
    )


class Hidden(nn.Module):
    """A hidden layer whose outputs are used in some way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.inner = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1))
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        hidden = self.inner[0](x)
        if self.how == "softmax":
            hidden = hidden.softmax(1)
        y = self.inner[2](hidden)
        if self.how == "twice":
            y = y + hidden.mean()
        return self.fc((x + y).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("softmax", "inner.0: its outputs are read by softmax in the model"),
        ("twice", "inner.0: its outputs are read by mean in the model"),
        ("plain", "inner.0: its hidden units are in no module of their own"),
    ],
)
def test_hidden_units_that_cannot_be_cut(how: str, reason: str) -> None:
    with pytest.raises(QuadranasError, match=r"where 'inner' names nothing") as raised:
        made(Hidden(how), {"inner": ["hidden"]})
    assert reason in raised.value.message


def test_code_that_depends_on_a_width() -> None:
    class Fixed(BasicBlock):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.bn1(self.conv1(x))
            return x + self.bn2(self.conv2(hidden * torch.ones(1, 16, 1, 1).relu()))  # type: ignore[no-any-return]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(3, 16, 1), Fixed(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.stem(x)).mean((2, 3))  # type: ignore[no-any-return]

    with pytest.raises(QuadranasError, match="names nothing that can change by hidden"):
        made(Whole(), {"block": ["hidden"]})


class NotExportable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return self.fc(x) if float(x.sum()) >= 0 else self.fc(-x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "where", "options", "message"),
    [
        (NotExportable(), "*", {}, "the model does not export"),
        (nn.Conv2d(3, 2, 1), "*", {}, "the model returns shape"),
        (nn.Conv2d(4, 2, 1), "*", {}, "the model fails on the example of shape"),
        ("not a model", "*", {}, "the model is a str, expected a torch.nn.Module"),
        (build("resnet"), "layr1.*", {}, "where 'layr1.\\*' matches no layer of the model"),
        (build("resnet"), [], {}, "where names nothing"),
        (build("resnet"), {"conv1": ["skip"]}, {}, "conv1: it is no residual block"),
        (build("resnet"), {"conv1": ["kernel"]}, {}, "conv1: it is no depthwise convolution"),
        (build("resnet"), {"conv1": ["kernal"]}, {}, "unknown choice 'kernal'.*kernel"),
        (build("resnet"), {"bn1": ["quadratic"]}, {}, "bn1: BatchNorm2d has no quadratic version"),
        (
            build("mobilenet"),
            {"features.3.conv.3": ["kernel"]},
            {},
            "its kernel cannot shrink: it needs a square one of at least 5",
        ),
        (
            build("resnet"),
            {"layer1.0.conv1": ["quadratic", "adapted"]},
            {},
            "layer1.0.conv1 become quadratic as well as adapted",
        ),
        (build("resnet"), "*", {"widths": [1.5]}, "widths must be shares from 0 to 1"),
        (build("resnet"), "*", {"example": torch.zeros(3, 8, 8)}, "expected one square image"),
        (build("resnet"), "*", {"example": "image"}, "the example has type str"),
    ],
)
def test_bad_input_is_one_message(
    model: nn.Module, where: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(QuadranasError, match=message) as raised:
        made(model, where, **options)
    assert raised.value.hint


def test_too_many_candidates() -> None:
    where = {"features.1": ["kernel", "hidden"], "features.1.conv.0": ["quadratic"]}
    widths = [n / 16 for n in range(1, 16)]
    wide = MobileNet()
    wide.features[1] = InvertedResidual(8, 8, 1, 16, kernel=9)
    with pytest.raises(
        QuadranasError, match=r"features\.1\.conv has 128 candidates, more than 64"
    ):
        made(wide, where, widths=widths)
