"""The published models against plain references in float64, and their checkpoints."""

import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.layers.quadranet import ResidualBranch
from quadranas.layers.stochastic_depth import residual_blocks
from quadranas.network.published import create_model, load_published_weights
from quadranas.network.skeleton import build_subnet
from quadranas.space.space_file import load_space
from tests.bundles import toy_architecture
from tests.network.plain_networks import DEPTHS, arrays, plain_quadranet, published_quadranet
from tests.networks import images_and_array, reference_model, same_state, state_of

Scrambler = Callable[..., nn.Module]


# ---------------------------------------------------------------- forward pass


@pytest.mark.parametrize("name", ["quadranet25_t", "quadranet25_t_q1", "quadranet25_t_q12"])
def test_reference_models_compute_what_the_paper_writes(name: str, scramble: Scrambler) -> None:
    model, _ = reference_model(name)
    scramble(model).double()
    images, array = images_and_array()
    with torch.no_grad():
        scores = model(images)
    expected = torch.from_numpy(plain_quadranet(array, arrays(model.state_dict())))
    assert expected.std() > 0.1
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("num_classes", "resolution"), [(1, 32), (7, 96), (21841, 224)])
def test_any_class_count_and_any_multiple_of_32(num_classes: int, resolution: int) -> None:
    with torch.device("meta"):
        model = create_model("quadranet25_t", num_classes=num_classes, resolution=resolution)
        assert model(torch.empty(2, 3, resolution, resolution)).shape == (2, num_classes)


def test_an_architecture_gives_an_untrained_network_also_for_other_classes() -> None:
    tiny = toy_architecture()
    torch.manual_seed(3)
    network = create_model(tiny, drop_path=0.2)
    torch.manual_seed(3)
    assert same_state(network, build_subnet(tiny).state_dict())
    assert residual_blocks(network)[-1].drop_probability == 0.2
    other = create_model(tiny, num_classes=3, resolution=2 * tiny.resolution)
    assert other.architecture == tiny.adapted(num_classes=3, resolution=2 * tiny.resolution)
    with pytest.raises(QuadranasError, match=r"unknown model 'run/architecture\.json'"):
        create_model(Path("run/architecture.json"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 100}, "resolution 100 does not fit quadranet25_t.*\nUse 96 or 128."),
        ({"num_classes": 0}, "0 classes do not fit quadranet25_t: the number must be 1 to 65536"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1, got 1.0"),
        ({"drop_path": -0.1}, "drop_path must be at least 0 and below 1, got -0.1"),
        ({"drop_path": math.nan}, "drop_path must be at least 0 and below 1, got nan"),
    ],
)
def test_impossible_models(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(QuadranasError, match=message):
        create_model("quadranet25_t", **arguments)


def test_an_unknown_model() -> None:
    with pytest.raises(QuadranasError, match=r"unknown model 'quadranet25'.*did you mean 'quadra"):
        create_model("quadranet25")


# ---------------------------------------------------------------- initialisation


def test_reference_models_start_as_published() -> None:
    model = create_model("quadranet25_t", num_classes=1000)
    kinds = {"weight": 0, "bias": 0, "norm": 0, "gamma": 0}
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            kinds["weight"] += 1
            count = module.weight.numel()
            assert module.weight.std().item() == pytest.approx(0.02, rel=4 / math.sqrt(2 * count))
            assert module.weight.mean().item() == pytest.approx(0, abs=4 * 0.02 / math.sqrt(count))
            assert module.bias is not None
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            kinds["norm"] += 1
            assert (module.weight == 1).all()
            assert not module.bias.any()
        elif isinstance(module, ResidualBranch):
            kinds["gamma"] += 1
            assert (module.gamma == 1e-6).all()
    # 25 blocks of three convolutions, two linear layers, two norms, two gammas; four entries; head
    assert kinds == {"weight": 25 * 5 + 4 + 1, "bias": 0, "norm": 25 * 2 + 4 + 1, "gamma": 50}


def test_drop_path_rises_linearly_over_the_blocks() -> None:
    with torch.device("meta"):
        model = create_model("quadranet25_t", drop_path=0.24)
    found = [m.drop_probability for m in model.modules() if isinstance(m, ResidualBranch)]
    assert found == pytest.approx([0.01 * index for index in range(25) for _ in range(2)])


def test_a_new_model_is_nearly_its_stem_and_head() -> None:
    model = create_model("quadranet25_t", num_classes=5, resolution=32).eval()
    images, _ = images_and_array()
    with torch.no_grad():
        before = model(images.float())
        for module in model.modules():
            if isinstance(module, ResidualBranch):
                module.gamma.zero_()
        torch.testing.assert_close(model(images.float()), before, rtol=0, atol=1e-4)


# ---------------------------------------------------------------- published checkpoints


NARROW_DEPTHS, NARROW_WIDTHS = (2, 2, 4, 2), (40, 80, 128, 256)


def narrow_model(num_classes: int = 6) -> nn.Module:
    """The narrow QuadraNet: kernel 7, expansion 4, the least depths of the mobile space."""
    space = load_space("quadranet-mobile", widths=NARROW_WIDTHS).with_num_classes(num_classes)
    choices: dict[str, tuple[int, ...] | None] = {
        block.name: None if block.optional else (2, 1)
        for block in space.blocks
        if block.stage.startswith("stage") and not block.stage.endswith("entry")
    }
    return build_subnet(space.architecture(choices).adapted(resolution=32)).eval()


def published_tensors(
    depths: tuple[int, ...], widths: tuple[int, ...], num_classes: int
) -> dict[str, Tensor]:
    """A checkpoint of random tensors under the published names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        entry = f"downsample_layers.{stage}"
        if stage == 0:
            shapes |= {f"{entry}.0.weight": (width, 3, 4, 4), f"{entry}.0.bias": (width,)}
            shapes |= {f"{entry}.1.weight": (width,), f"{entry}.1.bias": (width,)}
        else:
            before = widths[stage - 1]
            shapes |= {f"{entry}.0.weight": (before,), f"{entry}.0.bias": (before,)}
            shapes |= {f"{entry}.1.weight": (width, before, 2, 2), f"{entry}.1.bias": (width,)}
        for index in range(depth):
            block = f"stages.{stage}.{index}"
            for norm in ("norm1", "norm2"):
                shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
            for number in (1, 2, 3):
                conv = f"{block}.QuadraConv.conv{number}"
                shapes |= {f"{conv}.weight": (width, 1, 7, 7), f"{conv}.bias": (width,)}
            shapes |= {f"{block}.pwconv1.weight": (4 * width, width)}
            shapes |= {f"{block}.pwconv1.bias": (4 * width,)}
            shapes |= {f"{block}.pwconv2.weight": (width, 4 * width)}
            shapes |= {f"{block}.pwconv2.bias": (width,)}
            shapes |= {f"{block}.gamma1": (width,), f"{block}.gamma2": (width,)}
    shapes |= {"norm.weight": (widths[-1],), "norm.bias": (widths[-1],)}
    shapes |= {"head.weight": (num_classes, widths[-1]), "head.bias": (num_classes,)}
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(shape, generator=generator)
        * (math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.5)
        for name, shape in shapes.items()
    }


def narrow_tensors() -> dict[str, Tensor]:
    return published_tensors(NARROW_DEPTHS, NARROW_WIDTHS, 6)


@pytest.mark.parametrize("form", ["safetensors", "pth", "model", "state_dict"])
def test_a_published_checkpoint_is_used_whole(tmp_path: Path, form: str) -> None:
    tensors = narrow_tensors()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(tensors, path)
    elif form == "pth":
        torch.save(tensors, path)
    else:
        torch.save({form: tensors, "epoch": 300, "lr": [0.1]}, path)
    model = narrow_model()
    load_published_weights(model, path)  # type: ignore[arg-type]

    assert len(model.state_dict()) == len(tensors)
    wanted = sorted(tensor.double().sum().item() for tensor in tensors.values())
    assert sorted(t.double().sum().item() for t in model.state_dict().values()) == wanted

    images, array = images_and_array()
    with torch.no_grad():
        scores = model.double()(images)
    expected = torch.from_numpy(published_quadranet(array, arrays(tensors), NARROW_DEPTHS))
    assert expected.std() > 0.1
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)


def test_a_checkpoint_of_a_reference_model(tmp_path: Path) -> None:
    tensors = published_tensors(DEPTHS, (64, 128, 256, 512), 1000)
    path = tmp_path / "quadranet25_t.safetensors"
    save_file(tensors, path)
    model = create_model("quadranet25_t").eval()
    load_published_weights(model, str(path))
    path.unlink()  # 65 MB
    images, array = images_and_array(batch=1)
    with torch.no_grad():
        scores = model.double()(images)
    expected = torch.from_numpy(published_quadranet(array, arrays(tensors), DEPTHS))
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)


def rename(tensors: dict[str, Tensor]) -> None:
    tensors["stages.0.0.dwconv.weight"] = tensors.pop("stages.0.0.QuadraConv.conv2.weight")


def cut_head(tensors: dict[str, Tensor]) -> None:
    tensors["head.weight"] = tensors["head.weight"][:5]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda t: t.pop("stages.2.3.gamma1"),
            "does not fit this model: 1 tensors missing ['stages.2.3.gamma1'], 0 unexpected []",
        ),
        (
            lambda t: t.update({"head_dist.weight": torch.zeros(2)}),
            "does not fit this model: 0 tensors missing [], 1 unexpected ['head_dist.weight']",
        ),
        (
            rename,
            "1 tensors missing ['stages.0.0.QuadraConv.conv2.weight'], "
            "1 unexpected ['stages.0.0.dwconv.weight']",
        ),
        (
            cut_head,
            "'blocks.head.norm_head.linear.weight' has shape (5, 256), expected (6, 256)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit(
    tmp_path: Path, spoil: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    tensors = narrow_tensors()
    spoil(tensors)
    path = tmp_path / "weights.pth"
    torch.save(tensors, path)
    model = narrow_model()
    before = state_of(model)
    with pytest.raises(QuadranasError, match=re.escape(message)) as caught:
        load_published_weights(model, path)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    assert same_state(model, before)


def test_a_checkpoint_for_another_kind_of_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(narrow_tensors(), path)
    with torch.device("meta"):
        mobile = build_subnet(load_space("mbconv-mobile").architecture({}))
        quadratic = create_model("quadranet25_t_q1")
    with pytest.raises(
        QuadranasError, match="does not fit this model, since it is not a QuadraNet"
    ):
        load_published_weights(mobile, path)
    with pytest.raises(QuadranasError, match=r"does not fit this model: \d+ tensors missing"):
        load_published_weights(quadratic, path)


class Exploit:
    """Unpickled carelessly, it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_executed(
    tmp_path: Path, writer: str, nested: bool
) -> None:
    marker = tmp_path / "marker"
    exploit = Exploit(marker)
    content: Any = {"model": narrow_tensors(), "args": exploit} if nested else exploit
    path = tmp_path / "weights.pth"
    if writer == "torch":
        torch.save(content, path)
        torch.load(path, weights_only=False)
    else:
        path.write_bytes(pickle.dumps(content))
        pickle.loads(path.read_bytes())
    assert marker.exists()  # the file is as dangerous as it should be
    marker.unlink()

    model = narrow_model()
    before = state_of(model)
    with pytest.raises(QuadranasError, match=r"cannot read weights .*weights.pth: ") as caught:
        load_published_weights(model, path)  # type: ignore[arg-type]
    assert "damaged, or holds more than tensors, which is refused because" in str(caught.value)
    assert not marker.exists()
    assert same_state(model, before)


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {"a": {"b": 1.0}}, {1: 2}])
def test_a_file_without_named_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(QuadranasError, match=r"weights.pth: expected named tensors"):
        load_published_weights(narrow_model(), tmp_path / "weights.pth")  # type: ignore[arg-type]
