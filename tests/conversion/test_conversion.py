"""Conversion: which layers are replaced in networks of any family, and what the copies can do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quadranas.conversion import convert, plan_conversion
from quadranas.errors import QuadranasError
from quadranas.layers.forms import FORMS
from quadranas.layers.replacement import quadratic_layers
from tests.conversion.families import FAMILIES, RESOLUTION

SECOND_ORDER = sorted(set(FORMS) - {"linear"})


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, RESOLUTION, RESOLUTION)


def first_order_layers(model: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def expected_params(layer: nn.Module, form: str, norm: bool) -> int:
    """The forms' table, written out: weights, a bias per branch, a norm per branch."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    outputs, fan_in = layer.weight.shape[0], layer.weight[0].numel()
    branches = {"hadamard": 3, "product": 2, "bilinear": 1, "pure_bilinear": 0}.get(form, 1)
    matrix = outputs * fan_in**2 if "bilinear" in form else 0
    extra = (0 if layer.bias is None else 1) + 2 * norm
    return branches * outputs * (fan_in + extra) + matrix


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("norm", [False, True])
def test_a_converted_family_trains_saves_and_counts(family: str, norm: bool) -> None:
    model = FAMILIES[family]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quadratic = convert(model, "hadamard", norm=norm)
    assert type(quadratic) is type(model)
    x, labels = images(), torch.tensor([0, 1, 2, 3])
    assert quadratic(x).shape == model(x).shape
    originals = first_order_layers(model)
    replaced = quadratic_layers(quadratic)
    assert set(replaced) == set(list(originals)[1:-1])
    for name, layer in replaced.items():
        count = sum(parameter.numel() for parameter in layer.parameters())
        assert count == expected_params(originals[name], "hadamard", norm), name
    optimizer = torch.optim.SGD(quadratic.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(quadratic(x), labels)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in quadratic.parameters())
        optimizer.step()
    assert losses[-1] < losses[0]
    again = convert(FAMILIES[family](), "hadamard", norm=norm)
    again.load_state_dict(quadratic.state_dict())
    assert torch.equal(again.eval()(x), quadratic.eval()(x))
    for name in set(before) - {n for n in before if "running" in n or "tracked" in n}:
        assert torch.equal(model.state_dict()[name], before[name]), "the original has changed"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_family_is_exported(family: str) -> None:
    quadratic = convert(FAMILIES[family]()).eval()
    x = images(1)
    exported = torch.export.export(quadratic, (x,)).module()
    torch.testing.assert_close(exported(x), quadratic(x))


@pytest.mark.parametrize("form", SECOND_ORDER)
def test_every_form_counts_as_its_table_says(form: str) -> None:
    model = FAMILIES["vgg"]()
    quadratic = convert(model, form, keep_ends=False)
    replaced = quadratic_layers(quadratic)
    assert set(replaced) == set(first_order_layers(model))
    for name, layer in replaced.items():
        count = sum(parameter.numel() for parameter in layer.parameters())
        assert count == expected_params(first_order_layers(model)[name], form, norm=False)
    assert quadratic(images()).shape == (4, 5)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("layers.*", []),
        ("1.layers.*", ["1.layers.0", "1.layers.3", "1.layers.6"]),
        ("*.layers.0", ["1.layers.0", "2.layers.0"]),
        ({"1.layers.0", "2.layers.6"}, ["1.layers.0", "2.layers.6"]),
        (lambda name, m: getattr(m, "groups", 1) > 1, ["1.layers.3", "2.layers.3"]),
    ],
)
def test_layers_are_selected(select: Any, expected: list[str]) -> None:
    model = FAMILIES["mobilenet"]()
    if not expected:
        with pytest.raises(QuadranasError, match=r"select 'layers\.\*' has no layer"):
            convert(model, select=select)
        return
    assert list(quadratic_layers(convert(model, select=select))) == expected
    report = plan_conversion(model, select=select)
    assert [layer.name for layer in report if layer.change] == expected
    assert {layer.name: layer.reason for layer in report if not layer.change} == {
        name: "not selected" for name in first_order_layers(model) if name not in expected
    }


def test_layers_are_selected_by_type() -> None:
    model = FAMILIES["convnext"]()
    assert set(quadratic_layers(convert(model, select=nn.Linear))) == {
        *("1.expand", "1.project", "2.expand", "2.project")
    }


def test_the_report_says_why_layers_stay() -> None:
    weight_normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    reflected = nn.Conv1d(4, 4, 3, padding=1, padding_mode="reflect")
    hooked = nn.Linear(4, 4)
    hooked.register_forward_pre_hook(lambda module, args: None)
    tied = nn.Linear(4, 9, bias=False)
    embedding = nn.Embedding(9, 4)
    tied.weight = embedding.weight
    model = nn.ModuleDict(
        {
            "embedding": embedding,
            "attention": nn.MultiheadAttention(4, 1),
            "encoder": nn.TransformerEncoderLayer(4, 1, 8),
            "transposed": nn.ConvTranspose1d(4, 4, 3),
            "reflected": reflected,
            "normed": weight_normed,
            "lazy": nn.LazyLinear(4),
            "hooked": hooked,
            "even": nn.Conv1d(4, 4, 2, padding="same"),
            "recurrent": nn.GRU(4, 4),
            "plain": nn.Linear(4, 4),
            "scale": nn.LayerNorm(4),
            "tied": tied,
        }
    )
    reasons = {layer.name: layer.reason for layer in plan_conversion(model)}
    assert reasons == {
        "embedding": "Embedding has no quadratic version",
        "attention": "MultiheadAttention has no quadratic version",
        "attention.out_proj": "MultiheadAttention reads its weights directly",
        "encoder.self_attn": "TransformerEncoderLayer reads its weights directly",
        "encoder.self_attn.out_proj": "MultiheadAttention reads its weights directly",
        "encoder.linear1": "TransformerEncoderLayer reads its weights directly",
        "encoder.linear2": "TransformerEncoderLayer reads its weights directly",
        "transposed": "ConvTranspose1d has no quadratic version",
        "reflected": "Conv1d padded with 'reflect' has no quadratic version",
        "normed": "ParametrizedLinear has no quadratic version",
        "lazy": "the size of LazyLinear is unknown before a first batch",
        "hooked": "its hooks, such as a weight normalisation, would be lost",
        "even": "Conv1d has an even kernel, so it pads the two sides differently",
        "recurrent": "GRU has no quadratic version",
        "plain": "",
        "tied": "it shares its weight with embedding",
    }


@pytest.mark.parametrize(
    "select",
    [nn.ConvTranspose2d, [nn.Conv2d, nn.ConvTranspose2d], "up", ["*", "up"]],
    ids=["type", "types", "name", "names"],
)
def test_unsupported_kinds_that_are_named_are_refused(select: Any) -> None:
    model = nn.Sequential()
    for name, layer in (
        ("one", nn.Conv2d(3, 4, 3)),
        ("two", nn.Conv2d(4, 4, 3)),
        ("up", nn.ConvTranspose2d(4, 4, 2)),
        ("table", nn.Embedding(3, 4)),
    ):
        model.add_module(name, layer)
    with pytest.raises(QuadranasError) as caught:
        convert(model, select=select)
    assert "unsupported kinds found: ConvTranspose2d, Embedding; accepted: Linear" in str(
        caught.value
    )
    assert "Layers that can be: one, two" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"form": "hadamar"}, "did you mean 'hadamard'"),
        ({"form": "linear"}, "form 'linear' is first-order, as the layers already are"),
        ({"select": nn.GRU}, "select GRU has no layer that can be made quadratic"),
        ({"select": []}, r"select \[\] names no layer"),
        ({"select": 3}, "select 3 names no layer"),
        (
            {"select": "stem"},
            "the first or last layer of the network is selected .stem., which are",
        ),
    ],
)
def test_impossible_conversions_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(QuadranasError, match=text):
        convert(FAMILIES["resnet"](), **arguments)


def test_a_network_without_such_layers_is_refused() -> None:
    with pytest.raises(QuadranasError, match="the network has no layer that can be made"):
        convert(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()))


def test_a_shared_layer_stays_shared() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared, self.head = (nn.Linear(4, 4) for _ in range(3))
            self.towers = nn.ModuleList([nn.Sequential(self.shared), nn.Sequential(self.shared)])

        def forward(self, x: Tensor) -> Tensor:
            left, right = (tower(self.stem(x)) for tower in self.towers)
            out: Tensor = self.head(left + right)
            return out

    quadratic = convert(Siamese())
    shared = quadratic_layers(quadratic)["shared"]
    assert quadratic.towers[0][0] is shared  # type: ignore[index]
    assert quadratic.towers[1][0] is shared  # type: ignore[index]
    hadamard = 3 * (4 * 4 + 4)
    assert sum(p.numel() for p in quadratic.parameters()) == hadamard + 2 * (4 * 4 + 4)


def test_converting_again_leaves_quadratic_layers_alone() -> None:
    once = convert(FAMILIES["resnet"](), select="narrow")
    twice = convert(once, "product", keep_ends=False)
    forms = {name: layer.form for name, layer in quadratic_layers(twice).items()}
    assert forms["narrow"] == "hadamard"
    assert {form for name, form in forms.items() if name != "narrow"} == {"product"}
    with pytest.raises(QuadranasError, match="already quadratic"):
        convert(once, select="narrow")


def test_type_and_mode_of_the_original_are_kept() -> None:
    model = FAMILIES["vgg"]().double().eval()
    quadratic = convert(model, norm=True)
    assert all(p.dtype == torch.float64 for p in quadratic.parameters())
    assert not any(module.training for module in quadratic.modules())
