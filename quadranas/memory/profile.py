"""Prediction of the memory that training and inference of any PyTorch network need.

The network runs on fake tensors (shapes, layouts and lifetimes, no data), so the prediction also
works for a batch that would not fit. QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), has a
memory profiler for built models.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from quadranas.memory.fake_network import fake_copy, without_memory
from quadranas.memory.tracker import LayerRecorder, Moment, StorageTracker
from quadranas.memory.workspace import BATCHED, measure_workspaces

Loss = Callable[[Any], Tensor]
MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True, kw_only=True)
class LayerMemory:
    """Parameters, MACs and saved activations of one layer.

    Args:
        name: path of the module; empty for the network itself. Operations outside modules, such
            as an activation function, count for the module whose `forward` calls them.
        params: number of its own parameters, and of those in modules inside it that are never
            called.
        macs: MACs of one forward pass, for one sample.
        saved_bytes: bytes kept for the backward pass, without parameters.
    """

    name: str
    kind: str
    params: int
    macs: int
    saved_bytes: int


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The moment at which most memory is in use.

    Args:
        phase: `forward`, `backward` or `optimizer`.
        parts: bytes of `parameters`, `buffers`, `optimizer_state`, `inputs`, `gradients` (those
            of the parameters that exist at that moment), `activations` (with temporary tensors)
            and `workspace` (of the running kernel).
    """

    phase: str
    parts: dict[str, int]

    @property
    def num_bytes(self) -> int:
        """The sum of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class MemoryProfile:
    """The memory of a network at one input shape."""

    layers: tuple[LayerMemory, ...]
    training: Peak
    inference: Peak

    @property
    def params(self) -> int:
        """Number of parameters of the network."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """MACs of the network, for one sample."""
        return sum(layer.macs for layer in self.layers)

    @property
    def saved_bytes(self) -> int:
        """Bytes that all layers keep for the backward pass."""
        return sum(layer.saved_bytes for layer in self.layers)


PARTS = (
    *("parameters", "buffers", "optimizer_state", "inputs", "gradients", "activations"),
    "workspace",
)


def mean_loss(output: Any) -> Tensor:
    """Sum of the means of a network's floating-point outputs."""
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return torch.stack([t.mean() for t in tensors if t.is_floating_point()]).sum()


def adamw(parameters: list[nn.Parameter]) -> Optimizer:
    """Fused AdamW, as in the trainings of this package; it keeps two moments per parameter."""
    return torch.optim.AdamW(parameters, fused=True)


def profile_memory(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    loss: Loss = mean_loss,
    optimizer: MakeOptimizer = adamw,
    device: str = "cpu",
    differentiate_input: bool = False,
) -> MemoryProfile:
    """Predict the peak memory of a training step and an inference, and what each layer keeps.

    The training step is forward pass, loss, backward pass and optimiser step. Gradients are freed
    after it, and the optimiser's state exists before it. Only single kernels run on data, at
    batch 20 or less, to measure their workspace. The model is neither run nor changed, and may be
    on the `meta` device.

    Args:
        input_shape: shape of the only input, batch first.
        dtype: type of the input. Default: that of the first parameter.
        loss: a function from the network's output to a scalar.
        device: the device of the training, `cpu` or `cuda`; it must be available.
        differentiate_input: also compute the gradient of the input, as in a larger network.

    Raises:
        QuadranasError: the input does not fit, no parameter is trainable, the device is not
            available, or the shapes in the network depend on values.
    """
    with without_memory(model, input_shape, device):
        network = fake_copy(model, device)
        kind = dtype or next(network.parameters()).dtype
        inputs = torch.empty(tuple(input_shape), dtype=kind, device=device)
        inputs.requires_grad_(differentiate_input)
        recorder, training = _follow_training(network, inputs, loss, optimizer)
        inference = _follow_inference(network, inputs.detach())
    place = torch.device(device)
    return MemoryProfile(
        layers=_layers(model, recorder, training.macs, input_shape[0]),
        training=_peak(training, place),
        inference=_peak(inference, place),
    )


def _follow_training(
    network: nn.Module, inputs: Tensor, loss: Loss, make_optimizer: MakeOptimizer
) -> tuple[LayerRecorder, StorageTracker]:
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters)
    for parameter in parameters:  # a step creates the optimiser's state
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    tracker = _tracker(network, inputs)
    tracker.hold(optimizer_tensors(optimizer), "optimizer_state")
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(
            lambda p: tracker.hold([] if p.grad is None else [p.grad], "gradients")
        )
    recorder = LayerRecorder(tracker)
    with tracker:
        with recorder.recording(network):
            value = loss(network(inputs))
        tracker.phase = "backward"
        value.backward()
        tracker.settle()
        tracker.phase = "optimizer"
        optimizer.step()
    return recorder, tracker


def _follow_inference(network: nn.Module, inputs: Tensor) -> StorageTracker:
    network.eval()
    network.zero_grad()
    tracker = _tracker(network, inputs)
    with torch.no_grad(), tracker:
        network(inputs)
    return tracker


def _tracker(network: nn.Module, inputs: Tensor) -> StorageTracker:
    tracker = StorageTracker(BATCHED)
    tracker.hold(network.parameters(), "parameters")
    tracker.hold(network.buffers(), "buffers")
    tracker.hold([inputs], "inputs")
    return tracker


def optimizer_tensors(optimizer: Optimizer) -> list[Tensor]:
    """The tensors of an optimiser's state."""
    return [
        leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)
    ]


def _peak(tracker: StorageTracker, device: torch.device) -> Peak:
    """The moment with most memory, including the workspaces of kernels."""
    moments = list(tracker.moments.values())
    calls = [moment.call for moment in moments if moment.call is not None]
    sizes = measure_workspaces(calls, device)

    def total(found: tuple[Moment, int]) -> int:
        return found[0].held.total() + found[1]

    candidates = [(tracker.peak, 0), *zip(moments, sizes, strict=True)]
    moment, workspace = max(candidates, key=total)
    held = moment.held + Counter(workspace=workspace)
    return Peak(phase=moment.phase, parts={part: held[part] for part in PARTS})


def _layers(
    model: nn.Module, recorder: LayerRecorder, macs: Counter[str], batch: int
) -> tuple[LayerMemory, ...]:
    """One row per called module with parameters, MACs or saved activations."""
    params: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        while owner and owner not in recorder.called:
            owner = owner.rpartition(".")[0]
        params[owner] += parameter.numel()
    rows = (
        LayerMemory(
            name=name,
            kind=type(module).__name__,
            params=params[name],
            macs=macs[name] // batch,
            saved_bytes=recorder.saved_bytes[name],
        )
        for name, module in recorder.called.items()
    )
    return tuple(row for row in rows if row.params or row.macs or row.saved_bytes)
