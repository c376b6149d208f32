"""What several test files share: replayable examples, and two helpers for networks."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

# Generated examples are the same in every run, and no example is judged by the clock.
settings.register_profile("replay", derandomize=True, deadline=None, database=None)
settings.load_profile("replay")

Counter = Callable[[nn.Module, Tensor], tuple[int, int]]
Scrambler = Callable[..., nn.Module]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def count_by_hooks() -> Counter:
    """Parameters, and MACs of one forward pass as forward hooks see them, for batch 1."""

    def count(model: nn.Module, images: Tensor) -> tuple[int, int]:
        macs = 0

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal macs
            if isinstance(module, nn.Conv2d):
                height, width = module.kernel_size
                macs += output.numel() * height * width * module.in_channels // module.groups
            elif isinstance(module, nn.Linear):
                macs += output.numel() * module.in_features

        handles = [module.register_forward_hook(hook) for module in model.modules()]
        with torch.no_grad():
            model(images)
        for handle in handles:
            handle.remove()
        return sum(parameter.numel() for parameter in model.parameters()), macs

    return count


@pytest.fixture(scope="session")
def scramble() -> Scrambler:
    """Fills a module with values for which every tensor matters, and stays near unit scale."""

    def fill(module: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if not tensor.is_floating_point():
                    continue
                if tensor.dim() > 1:
                    tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
                elif name.endswith("running_var"):
                    tensor.uniform_(0.5, 2, generator=generator)
                else:
                    mean = 1 if name.endswith("weight") else 0
                    tensor.normal_(mean, 0.3, generator=generator)
        return module

    return fill
