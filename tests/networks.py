"""Images and reference models to compute with, and the state of a network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quadranas.network.published import create_model
from tests.network.plain_networks import Array


def images_and_array(resolution: int = 32, batch: int = 2) -> tuple[Tensor, Array]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(batch, 3, resolution, resolution, generator=generator)
    return images.double(), images.double().permute(0, 2, 3, 1).numpy()


def reference_model(name: str) -> tuple[nn.Module, Tensor]:
    """A model whose tensors are yet to be filled, and two images."""
    with torch.device("meta"):
        model = create_model(name, num_classes=5, resolution=32).eval()
    images, _ = images_and_array()
    return model.to_empty(device="cpu"), images.float()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
