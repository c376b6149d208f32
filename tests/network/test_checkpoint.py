"""Checkpoints as other programs write them: containers, prefixes, and values that are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from quadranas.errors import QuadranasError
from quadranas.network.published import create_model
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_tensors, load_weights
from quadranas.space.space_file import load_space
from tests.networks import same_state


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


STATE = network().state_dict()
TRAINED = {"epoch": 3, "optimizer": torch.optim.Adam(network().parameters()).state_dict()}


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (STATE, ""),
        *(
            ({key: STATE, **TRAINED}, f"tensors under the key '{key}'")
            for key in ("net", "model", "state_dict", "model_state_dict", "state_dict_ema")
        ),
        ({"my_net": STATE, **TRAINED}, "tensors under the key 'my_net'"),
        (
            {"model": {"state_dict": STATE}, **TRAINED},
            "tensors under the key 'model.state_dict'",
        ),
        (
            {"state_dict_ema": {}, "state_dict": STATE, "model_ema": STATE},
            "tensors under the key 'state_dict'; not used: model_ema",
        ),
        *(
            (
                prefixed(STATE, prefix),
                f"names without prefixes of wrappers ('{prefix}0.weight' is '0.weight')",
            )
            for prefix in ("module.", "model.", "_orig_mod.", "module._orig_mod.", "net.module.")
        ),
        (
            {"state_dict": prefixed(STATE, "model."), **TRAINED},
            "tensors under the key 'state_dict'; names without prefixes of wrappers "
            "('model.0.weight' is '0.weight')",
        ),
        (
            AveragedModel(network()).state_dict(),
            "names without prefixes of wrappers ('module.0.weight' is '0.weight')",
        ),
    ],
)
def test_containers_and_prefixes(content: dict[str, Any], note: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    model = network()
    assert load_weights(model, tmp_path / "weights.pth") == note
    if "n_averaged" not in content:
        assert same_state(model, STATE)


def test_a_wrapped_network_takes_plain_names() -> None:
    wrapped = nn.DataParallel(network())
    load_tensors(wrapped, STATE, "f")
    assert same_state(wrapped.module, STATE)


def test_prefixes_that_mean_something_stay() -> None:
    model = nn.ModuleDict({"model": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    state = {name: torch.rand_like(tensor) for name, tensor in model.state_dict().items()}
    assert load_tensors(model, state, "f") == ""
    assert same_state(model, state)
    load_tensors(model, prefixed(state, "module."), "f")
    assert same_state(model, state)
    ambiguous = nn.Module()
    ambiguous.weight, ambiguous.model = nn.Parameter(torch.zeros(2)), nn.Linear(1, 2, bias=False)
    with pytest.raises(QuadranasError, match="lacks tensor 'weight'"):
        load_tensors(ambiguous, prefixed(ambiguous.state_dict(), "net."), "f")


def endless() -> dict[str, Any]:
    """A container that contains itself."""
    content: dict[str, Any] = {}
    content["model"] = content
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": STATE, "b": STATE}, r"found the keys 'a' \(OrderedDict\), 'b' \(OrderedDict\)"),
        ({"epoch": 3}, r"expected named tensors, .* net, .* found the keys 'epoch' \(int\)"),
        ([1, 2], "found a list"),
        ({}, "found no keys"),
        (endless(), r"found the keys 'model' \(dict\)"),
    ],
)
def test_what_holds_no_tensors_is_named(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(QuadranasError, match=message):
        load_weights(network(), tmp_path / "weights.pth")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_a_tensor_without_a_shape_is_refused(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    torch.save(STATE | {"2.bias": nested}, tmp_path / "weights.pth")
    with pytest.raises(QuadranasError, match=r"'2\.bias' is a nested tensor, which has no shape"):
        load_weights(network(), tmp_path / "weights.pth")


def test_the_tensor_that_is_missing_behind_a_prefix_is_named() -> None:
    state = prefixed(STATE, "module.")
    del state["module.2.bias"]
    with pytest.raises(QuadranasError, match=r"lacks tensor '2\.bias'") as caught:
        load_tensors(network(), state, "f")
    assert "begin with 0.weight" in str(caught.value)


def wrong(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {**STATE, name: tensor}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            wrong("0.weight", torch.full((3, 4), torch.nan)),
            "'0.weight' has 12 of 12 values that are NaN or infinite",
        ),
        (wrong("2.bias", torch.tensor([0, torch.inf])), "'2.bias' has 1 of 2 values that are NaN"),
        (wrong("2.bias", torch.tensor([0, 1e300]).double()), "'2.bias' has 1 of 2 values"),
        (wrong("1.running_var", torch.full((3,), -torch.inf)), "'1.running_var' has 3 of 3"),
        *(
            (wrong("2.bias", torch.ones(2).to(kind)), f"'2.bias' has type {name}; accepted: ")
            for kind, name in (
                (torch.int64, "int64"), (torch.uint8, "uint8"), (torch.bool, "bool"),
                (torch.complex64, "complex64"), (torch.float8_e4m3fn, "float8_e4m3fn"),
            )
        ),
        (wrong("2.bias", torch.ones(2).to_sparse()), "'2.bias' is sparse_coo, not a dense array"),
        (wrong("2.bias", torch.ones(2, device="meta")), "'2.bias' is without data"),
        (
            wrong("1.num_batches_tracked", torch.tensor(0.5)),
            "'1.num_batches_tracked' has type float32 where whole numbers belong",
        ),
    ],
)  # fmt: skip
def test_values_that_cannot_be_weights(tensors: dict[str, Tensor], message: str) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(QuadranasError, match=message):
        load_tensors(model, tensors, "f")
    assert same_state(model, before)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_other_floating_types(kind: torch.dtype) -> None:
    model = network()
    load_tensors(model, {name: tensor.to(kind) for name, tensor in STATE.items()}, "f")
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model.state_dict()["0.weight"], STATE["0.weight"].to(kind).float())


def test_safetensors_saves_a_state_dict_as_it_is(tmp_path: Path) -> None:
    architecture = load_space("mbconv-mobile").architecture({})
    for model in (create_model("quadranet25_t", num_classes=10), build_subnet(architecture)):
        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        load_weights(model, tmp_path / "weights.safetensors")
