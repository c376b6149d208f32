"""Recording distributions of activations, weights and gradients, layer by layer.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), its plots of activations, weights and
gradients over training.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.inspection.alarms import GradientWatch
from quadranas.inspection.records import Alarm, LayerRecord, StepRecord
from quadranas.inspection.terms import describe, energy, quiet_terms
from quadranas.layers.quadratic import QuadraticLayer
from quadranas.layers.replacement import FIRST_ORDER, quadratic_layers


class Inspector:
    """Observes the layers of a network while attached, without changing it or its training.

    `with inspector:` attaches and detaches. `record(step)`, called after a backward pass, returns
    the activations, terms and weights of the last forward pass and the gradients of the last
    backward pass (before clipping). `step(number)` does all of it around one training step:

        inspector = Inspector(model, every=100)
        for number, (images, labels) in enumerate(batches):
            with inspector.step(number):
                optimizer.zero_grad()
                loss(model(images), labels).backward()
                optimizer.step()

    Args:
        all_layers: also inspect first-order layers (`nn.Linear`, `nn.ConvNd`).
        every: interval; `step` inspects the steps whose number is a multiple of it.

    Attributes:
        records: one per recorded step, with its alarms.
        on_alarm: called with every alarm that was not in the previous record.

    Raises:
        QuadranasError: no layer to inspect.
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
        """Start observing; no effect if already attached."""
        if self._handles:
            return
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_hook(self._forward_hook(name)))
            for part, weight in _weights(layer).items():
                if weight.is_leaf and weight.requires_grad:
                    hook = self._gradient_hook(name, part)
                    self._handles.append(weight.register_post_accumulate_grad_hook(hook))

    def detach(self) -> None:
        """Stop observing, and discard unrecorded observations."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._seen = [], {}

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(self, *raised: object) -> None:
        self.detach()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A context for one training step: observe and record it if its number is a multiple."""
        if number % self.every:
            yield
            return
        with self:
            yield
            self.record(number)

    def record(self, step: int) -> StepRecord:
        """Record the observations since the last record, and raise alarms.

        Raises:
            QuadranasError: no inspected layer was called.
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
    """The layers to inspect, by their paths, in the network's order.

    Raises:
        QuadranasError: no layer to inspect.
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
    """The weights of a layer, by its parts."""
    found: dict[str, Tensor]
    if not isinstance(layer, QuadraticLayer):
        return {"weight": layer.get_parameter("weight")}
    found = {name: branch.get_parameter("weight") for name, branch in layer.branches.items()}
    return found | ({"matrix": layer.matrix} if hasattr(layer, "matrix") else {})
