"""profile: parameters, MACs and memory of a model, per operation or layer."""

from typing import TYPE_CHECKING

from quadranas.errors import QuadranasError
from quadranas.runs.model_argument import architecture_of
from quadranas.space.architecture import Architecture
from quadranas.space.cost import count_macs, count_params
from quadranas.validation import CommandResult, Frozen

if TYPE_CHECKING:
    from torch import Tensor

    from quadranas.memory import MemoryProfile
    from quadranas.runs.stored_network import Model


class OperationCounts(Frozen):
    """Parameters and MACs of one operation, at batch 1.

    Args:
        block, op: name of the block, and description of the operation in it.
        params, macs: number of parameters and multiply-accumulates of the operation.
    """

    block: str
    op: str
    params: int
    macs: int


class ProfileResult(CommandResult):
    """Parameters and MACs of a model and of each of its operations, at batch 1.

    Args:
        model: name of the model.
        resolution: height and width of the input, in pixels.
        num_classes: number of classes.
        params, macs: number of parameters and multiply-accumulates of the model.
        layers: the operations in order.
    """

    model: str
    resolution: int
    num_classes: int
    params: int
    macs: int
    layers: tuple[OperationCounts, ...]


class DirectMemory(Frozen):
    """Memory without memory-efficient back-propagation of the quadratic layers.

    Args:
        saved_bytes: bytes kept for the backward pass.
        training_peak_bytes: peak memory of a training step.
    """

    saved_bytes: int
    training_peak_bytes: int


class ProfiledLayer(Frozen):
    """Memory of one layer.

    Args:
        name, kind: path and class of the layer.
        params: number of parameters of the layer.
        macs: number of multiply-accumulates for one image.
        saved_bytes: bytes kept for the backward pass.
        saved_bytes_direct: bytes kept without memory-efficient back-propagation.
    """

    name: str
    kind: str
    params: int
    macs: int
    saved_bytes: int
    saved_bytes_direct: int


class MemoryResult(CommandResult):
    """Predicted memory of a model in training and inference; see `quadranas.memory`.

    The training step is that of AdamW on the cross entropy.

    Args:
        model: name of the model.
        resolution: height and width of the input, in pixels.
        num_classes: number of classes.
        batch: number of images.
        params: number of parameters.
        macs: number of multiply-accumulates for one image.
        saved_bytes: bytes kept for the backward pass.
        training_peak_bytes, inference_peak_bytes: peak memory.
        training_peak_phase: `forward`, `backward` or `optimizer`.
        training_parts_bytes, inference_parts_bytes: the parts of the peaks.
        direct: memory without memory-efficient back-propagation; None without quadratic layers.
        layers: the layers in order.
    """

    model: str
    resolution: int
    num_classes: int
    batch: int
    params: int
    macs: int
    saved_bytes: int
    training_peak_bytes: int
    inference_peak_bytes: int
    training_peak_phase: str
    training_parts_bytes: dict[str, int]
    inference_parts_bytes: dict[str, int]
    direct: DirectMemory | None
    layers: tuple[ProfiledLayer, ...]


def profile(
    model: "Model",
    *,
    resolution: int | None = None,
    num_classes: int | None = None,
    memory: bool = False,
    batch: int | None = None,
) -> ProfileResult | MemoryResult:
    """Count parameters and MACs of a model, or predict its memory.

    Args:
        model: an architecture file, a run folder, the name of a model, or an opened network.
        resolution: input height and width. Default: the model's own.
        num_classes: number of classes. Default: the model's own.
        memory: also predict the memory of training and inference, layer by layer.
        batch: number of images for the memory (default 1).

    Raises:
        QuadranasError: an unknown model, a resolution or a number of classes that do not fit,
            changed layers without `memory`, or `batch` without `memory`.
    """
    architecture = architecture_of(model)
    architecture = architecture.adapted(resolution=resolution, num_classes=num_classes)
    if memory:
        return _memory(architecture, batch or 1)
    if batch is not None:
        raise QuadranasError("--batch needs --memory", "Add --memory, or omit --batch.")
    return ProfileResult(
        model=architecture.name,
        resolution=architecture.resolution,
        num_classes=architecture.num_classes,
        params=count_params(architecture),
        macs=count_macs(architecture),
        layers=tuple(
            OperationCounts(
                block=block.name, op=str(op), params=count_params(op), macs=count_macs(op)
            )
            for block in architecture.blocks
            for op in block.ops
        ),
    )


def _memory(architecture: Architecture, batch: int) -> MemoryResult:
    from quadranas.layers.replacement import quadratic_layers, set_memory_efficient
    from quadranas.memory import profile_memory
    from quadranas.network.skeleton import build_on_meta

    network = build_on_meta(architecture)
    shape = (batch, 3, architecture.resolution, architecture.resolution)
    found = profile_memory(network, shape, loss=_classification)
    direct = None
    if quadratic_layers(network):
        set_memory_efficient(network, False)
        direct = profile_memory(network, shape, loss=_classification)
    return MemoryResult(
        model=architecture.name,
        resolution=architecture.resolution,
        num_classes=architecture.num_classes,
        batch=batch,
        params=found.params,
        macs=found.macs,
        saved_bytes=found.saved_bytes,
        training_peak_bytes=found.training.num_bytes,
        inference_peak_bytes=found.inference.num_bytes,
        training_peak_phase=found.training.phase,
        training_parts_bytes=found.training.parts,
        inference_parts_bytes=found.inference.parts,
        direct=direct
        and DirectMemory(
            saved_bytes=direct.saved_bytes, training_peak_bytes=direct.training.num_bytes
        ),
        layers=_layers(found, direct or found),
    )


def _classification(logits: "Tensor") -> "Tensor":
    import torch
    from torch.nn import functional

    labels = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    return functional.cross_entropy(logits, labels)


def _layers(found: "MemoryProfile", direct: "MemoryProfile") -> tuple[ProfiledLayer, ...]:
    direct_bytes = {layer.name: layer.saved_bytes for layer in direct.layers}
    return tuple(
        ProfiledLayer(
            name=layer.name,
            kind=layer.kind,
            params=layer.params,
            macs=layer.macs,
            saved_bytes=layer.saved_bytes,
            saved_bytes_direct=direct_bytes.get(layer.name, 0),
        )
        for layer in found.layers
    )
