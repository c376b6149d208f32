"""What training and inference of any PyTorch network hold in memory, predicted without the memory.

The network runs on fake tensors (shapes, layouts and life times, no memory), so the prediction
works for a batch that would not fit. QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), has a
memory profiler of built models for the same question.
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
    """What one layer has and keeps.

    Args:
        name: the module's path; empty for the network itself. Work that is no module's own, such
            as an activation function, counts for the module whose `forward` does it.
        params: its own, and those of modules inside it that are never called.
        macs: of one forward pass, for one sample.
        saved_bytes: kept for the backward pass, parameters not counted.
    """

    name: str
    kind: str
    params: int
    macs: int
    saved_bytes: int


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The moment at which most memory is held.

    Args:
        phase: `forward`, `backward` or `optimizer`.
        parts: bytes of `parameters`, `buffers`, `optimizer_state`, `inputs`, `gradients` (of the
            parameters, as far as they exist at that moment), `activations` (with temporary
            tensors) and `workspace` (of the kernel that runs).
    """

    phase: str
    parts: dict[str, int]

    @property
    def num_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class MemoryProfile:
    """The memory of a network at one input shape."""

    layers: tuple[LayerMemory, ...]
    training: Peak
    inference: Peak

    @property
    def params(self) -> int:
        """Of the whole network."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Of the whole network, for one sample."""
        return sum(layer.macs for layer in self.layers)

    @property
    def saved_bytes(self) -> int:
        """What all layers keep for the backward pass."""
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
    """AdamW with two moments per parameter, in one kernel, as this project trains."""
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
    """Predict what a training step and an inference hold at most, and what each layer keeps.

    The training step is forward pass, loss, backward pass and optimiser step, gradients freed
    after it, the optimiser's state already there. Only single kernels run for real, at batch 20
    or less, to see their workspace. The model is neither run nor changed, and may lie on `meta`.

    Args:
        input_shape: of the one input, batch first.
        dtype: of the input; that of the first parameter if not given.
        loss: a scalar of the network's output.
        device: where it would run, `cpu` or `cuda`; it must be here.
        differentiate_input: also compute the input's gradient, as inside of a larger network.

    Raises:
        QuadranasError: the input does not fit, nothing is trainable, the device is not here, or
            the network's shapes depend on its values, so that it cannot be followed without them.
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
    for parameter in parameters:  # a step makes the optimiser's state
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
    """The largest moment, kernels' workspaces included."""
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
    """One row per module that was called and has, does or keeps something."""
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
