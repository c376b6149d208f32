"""Distributions of activations, weights and gradients, layer by layer, in any training.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), its plots of activations, weights and
gradients over training.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.inspection.alarms import GradientWatch
from quadranas.inspection.records import Alarm, LayerRecord, StepRecord
from quadranas.inspection.terms import describe, energy, quiet_terms
from quadranas.layers.quadratic import QuadraticLayer
from quadranas.layers.replacement import FIRST_ORDER, quadratic_layers


class Inspector:
    """Watches the layers of a network while it is attached; nothing in it or its training changes.

    `with inspector:` attaches and detaches; `record(step)` after a backward pass tells what was
    seen: of the last forward pass activations, terms and weights, of the last backward pass
    gradients (before any clipping). `step(number)` does all that around one step of training:

        inspector = Inspector(model, every=100)
        for number, (images, labels) in enumerate(batches):
            with inspector.step(number):
                optimizer.zero_grad()
                loss(model(images), labels).backward()
                optimizer.step()

    Args:
        all_layers: first-order layers too (`nn.Linear`, `nn.ConvNd`), not only quadratic ones.
        every: of the steps given to `step`, those whose number it divides are inspected.

    Attributes:
        records: one per recorded step, with the alarms it raised.
        on_alarm: called with every alarm that the recorded step before did not raise already.

    Raises:
        QuadranasError: there is nothing to inspect.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        all_layers: bool = False,
        every: int = 1,
        on_alarm: Callable[[Alarm], None] = lambda alarm: None,
    ) -> None:
        if every < 1:
            raise QuadranasError(f"every must be at least 1, got {every}")
        self.layers = inspected_layers(model, all_layers=all_layers)
        self.every, self.on_alarm = every, on_alarm
        self.records: list[StepRecord] = []
        self.watch = GradientWatch()
        self._seen: dict[str, dict[str, Any]] = {}
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Begin to watch; without effect if attached already."""
        if self._handles:
            return
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_hook(self._forward_hook(name)))
            for part, weight in _weights(layer).items():
                if weight.is_leaf and weight.requires_grad:
                    hook = self._gradient_hook(name, part)
                    self._handles.append(weight.register_post_accumulate_grad_hook(hook))

    def detach(self) -> None:
        """Stop watching, and forget what was not recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._seen = [], {}

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around one step of training: watch and record it, if it is one of those chosen."""
        if number % self.every:
            yield
            return
        with self:
            yield
            self.record(number)

    def record(self, step: int) -> StepRecord:
        """Add what was seen since the last record, and raise its alarms.

        Raises:
            QuadranasError: nothing was seen.
        """
        if not self._seen:
            raise QuadranasError(
                f"nothing to record at step {step}: no inspected layer was called",
                "Attach the inspector before the forward pass, and record after the backward one.",
            )
        layers = {
            name: LayerRecord(kind=_kind(self.layers[name]), **self._seen[name])
            for name in self.layers
            if name in self._seen
        }
        record = StepRecord(step=step, layers=layers)
        record = record.model_copy(update={"alarms": self.watch.judge(record)})
        self.records.append(record)
        self._seen = {}
        for alarm in self.watch.new(record.alarms):
            self.on_alarm(alarm)
        return record

    def _forward_hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
            seen = self._seen.setdefault(name, {})
            seen["activation"] = describe(output)
            seen["weights"] = {part: describe(w) for part, w in _weights(layer).items()}
            if isinstance(layer, QuadraticLayer):
                first, second = quiet_terms(layer, inputs[0])
                seen["first_order_energy"] = energy(first)
                seen["second_order_energy"] = energy(second)

        return hook

    def _gradient_hook(self, name: str, part: str) -> Callable[[Tensor], None]:
        def hook(weight: Tensor) -> None:
            if weight.grad is not None:
                gradients = self._seen.setdefault(name, {}).setdefault("gradients", {})
                gradients[part] = describe(weight.grad)

        return hook


def inspected_layers(model: nn.Module, *, all_layers: bool = False) -> dict[str, nn.Module]:
    """The layers to inspect by their paths, in the network's order.

    Raises:
        QuadranasError: there is none.
    """
    quadratic = quadratic_layers(model)
    inside = {id(branch) for layer in quadratic.values() for branch in layer.branches.values()}
    found = {
        name: module
        for name, module in model.named_modules()
        if name in quadratic
        or (all_layers and type(module) in FIRST_ORDER and id(module) not in inside)
    }
    if not found:
        kinds = "quadratic, linear or convolutional" if all_layers else "quadratic"
        raise QuadranasError(
            f"the network has no {kinds} layer to inspect",
            "" if all_layers else "Inspect first-order layers with Inspector(all_layers=True).",
        )
    return found


def _kind(layer: nn.Module) -> str:
    return layer.form if isinstance(layer, QuadraticLayer) else type(layer).__name__


def _weights(layer: nn.Module) -> dict[str, Tensor]:
    """The weights of a layer by the part they belong to."""
    found: dict[str, Tensor]
    if not isinstance(layer, QuadraticLayer):
        return {"weight": layer.get_parameter("weight")}
    found = {name: branch.get_parameter("weight") for name, branch in layer.branches.items()}
    return found | ({"matrix": layer.matrix} if hasattr(layer, "matrix") else {})
