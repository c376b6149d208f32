"""Tracking the allocations of a step, storage by storage.

A `StorageTracker` intercepts every operation below autograd. Under PyTorch's `FakeTensorMode`
tensors have shapes, layouts and lifetimes but no data, so a batch that would not fit can be
tracked.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class TensorLayout:
    """Shape, stride and type of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def zeros(self, device: torch.device, size: int | None = None) -> Tensor:
        """A tensor of this layout, optionally with another size of its first axis."""
        shape = self.shape if size is None else (size, *self.shape[1:])
        return torch.empty_strided(shape, self.stride, dtype=self.dtype, device=device).zero_()


@dataclass(frozen=True)
class Call:
    """One call of an operation, with `TensorLayout` in place of tensors."""

    operation: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """Bytes in use, by category, while an operation runs."""

    held: Counter[str]
    phase: str
    call: Call | None = None


class StorageTracker(TorchDispatchMode):
    """Tracks the live storages by category, and the moment with most memory.

    Args:
        kernels: operations whose calls are all recorded as moments, because their kernels may use
            memory outside of tensors.

    Attributes:
        phase: set by the caller, and stored with every moment.
        peak: the moment with most bytes.
        moments: for each distinct call of `kernels`, the moment with most bytes.
        macs: multiply-accumulates of the forward pass, by running layer.
        layer: the running layer, set by the caller.
    """

    def __init__(self, kernels: Iterable[Any] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = frozenset(kernels)
        self.phase, self.layer = "forward", ""
        self.peak = Moment(Counter(), self.phase)
        self.moments: dict[str, Moment] = {}
        self.macs: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._categories: dict[int, str] = {}
        self._summed = False

    def hold(self, tensors: Iterable[Tensor], category: str) -> None:
        """Count the storages of tensors in a category, each once, until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._categories:
                self._held[self._categories[key]] -= size
            else:
                weakref.finalize(storage, self._free, key, size)
            self._categories[key] = category
            self._held[category] += size

    def category(self, tensor: Tensor) -> str | None:
        """The category of a tensor's storage; None if it is not tracked."""
        return self._categories.get(tensor.untyped_storage()._cdata)

    def settle(self) -> None:
        """Update the peak with the current state."""
        self._summed = False
        if self._held.total() > self.peak.held.total():
            self.peak = Moment(self._held.copy(), self.phase)

    def _free(self, key: int, size: int) -> None:
        self._held[self._categories.pop(key)] -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count the tensors it allocates."""
        if self._summed:
            self.settle()
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        self.hold([tensor for tensor in made if self.category(tensor) is None], "activations")
        # The engine adds the gradients of a tensor used twice in place, but not under a dispatch
        # mode (torch 2.13): such a sum counts when its operand is gone, at the next operation.
        self._summed = (
            self.phase == "backward"
            and func is torch.ops.aten.add.Tensor
            and torch._C._current_autograd_node() is None
        )
        if not self._summed:
            self.settle()
        if func in self.kernels:
            self._keep(Call(func, *tree_map_only(Tensor, _layout, (args, kwargs))))
        if self.phase == "forward" and func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=output)
            self.macs[self.layer] += flops // 2
        return output

    def _keep(self, call: Call) -> None:
        key = repr(call)
        known = self.moments.get(key)
        if known is None or known.held.total() < self._held.total():
            self.moments[key] = Moment(self._held.copy(), self.phase, call)


def _layout(tensor: Tensor) -> TensorLayout:
    return TensorLayout(tuple(tensor.shape), tensor.stride(), tensor.dtype)


class LayerRecorder:
    """Records which layer of a network runs, and what each saves for the backward pass.

    Attributes:
        called: the called modules by path, in the order of their first call.
        saved_bytes: saved bytes, by path of the innermost running module. A storage counts once,
            for the first layer that saves it. Parameters do not count.
    """

    def __init__(self, tracker: StorageTracker) -> None:
        self.called: dict[str, nn.Module] = {}
        self.saved_bytes: Counter[str] = Counter()
        self._tracker = tracker
        self._running: list[str] = [""]
        self._saved: set[int] = set()

    @contextmanager
    def recording(self, network: nn.Module) -> Iterator[None]:
        """Record the calls of a network's modules and the tensors that autograd saves."""
        with ExitStack() as stack:
            for name, module in network.named_modules():
                self._attach(stack, name, module)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._save, _as_is))
            yield

    def _attach(self, stack: ExitStack, name: str, module: nn.Module) -> None:
        def enter(called: nn.Module, inputs: Any) -> None:
            self.called.setdefault(name, called)
            self._running.append(name)
            self._tracker.layer = name

        def leave(called: nn.Module, inputs: Any, output: Any) -> None:
            self._running.pop()
            self._tracker.layer = self._running[-1]

        stack.callback(module.register_forward_pre_hook(enter).remove)
        stack.callback(module.register_forward_hook(leave, always_call=True).remove)

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._saved and self._tracker.category(tensor) != "parameters":
            self._saved.add(storage._cdata)
            self.saved_bytes[self._running[-1]] += storage.nbytes()
        return tensor


def _as_is(tensor: Tensor) -> Tensor:
    return tensor
