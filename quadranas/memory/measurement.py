"""Measured memory of the training and the inference of a network."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from quadranas.memory.profile import Loss, MakeOptimizer, adamw, mean_loss, optimizer_tensors
from quadranas.memory.workspace import held_at_once, tensor_bytes


@dataclass(frozen=True, kw_only=True)
class MeasuredMemory:
    """Peak memory in bytes, including parameters, buffers, optimiser state and input."""

    training_peak_bytes: int
    inference_peak_bytes: int


def measure_memory(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    loss: Loss = mean_loss,
    optimizer: MakeOptimizer = adamw,
    device: str = "cpu",
) -> MeasuredMemory:
    """Run a training step and an inference, and measure the memory that PyTorch allocates.

    The counterpart of `profile_memory`, with the same arguments. A copy of the model runs. On a
    CPU the profiler's allocation events are summed; on a GPU the caching allocator's statistics
    are read.
    """
    network = copy.deepcopy(model).to(device).train()
    inputs = torch.zeros(
        tuple(input_shape), dtype=dtype or next(network.parameters()).dtype, device=device
    )
    updates = optimizer([p for p in network.parameters() if p.requires_grad])
    held = [*network.parameters(), *network.buffers(), inputs]

    def train() -> None:
        loss(network(inputs)).backward()
        updates.step()
        updates.zero_grad()

    def infer() -> None:
        with torch.no_grad():
            network(inputs)

    train()
    training = _peak(train, [*held, *optimizer_tensors(updates)], device)
    network.eval()
    return MeasuredMemory(
        training_peak_bytes=training, inference_peak_bytes=_peak(infer, held, device)
    )


def _peak(run: Callable[[], None], held: Sequence[Tensor], device: str) -> int:
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return tensor_bytes(held) + torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    return tensor_bytes(held) + held_at_once(profiler)
