"""Training quadratic networks with any optimiser: groups, warm-up and a bound for the product.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), which trains second-order neurons
apart from first-order ones. The bound of `clip_products` is our own.

Two factors `a` and `b` are multiplied, so a step of both changes their product by more than a
step of the linear branch `c` changes the linear term. So the factors get their own learning
rate, warm-up and bound.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.layers.quadratic import QuadraticLayer
from quadranas.layers.replacement import quadratic_layers
from quadranas.training.optimizers import decay_groups

FIRST_ORDER = "c"
"""The branch that is linear in the input; all other parts are second-order."""


def quadratic_parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    second_order_lr: float = 0.1,
    second_order_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimiser, with the quadratic factors in their own groups.

    Every group has `lr`, `weight_decay`, `lr_factor` and `second_order`. Optimisers keep the last
    two in their groups and state dicts without using them. Norms and biases do not decay.

    Args:
        second_order_lr: learning rate of the second-order parts (branches `a` and `b`, and the
            matrix) as a factor of `lr`.
        second_order_decay: weight decay of the second-order parts; None: `weight_decay`.

    Raises:
        QuadranasError: the network has no quadratic layer, or a number is out of range.
    """
    layers = quadratic_layers(model)
    if not any(layer.second_order for layer in layers.values()):
        raise QuadranasError(
            "the network has no quadratic layer",
            "Make some with quadranas.layers.replacement.changed, or pass model.parameters() to "
            "the optimiser as usual.",
        )
    decays = (weight_decay, weight_decay if second_order_decay is None else second_order_decay)
    for name, value in zip(("weight_decay", "second_order_decay"), decays, strict=True):
        if value < 0:
            raise QuadranasError(f"{name} must be 0 or more, got {value}")
    for name, value in (("lr", lr), ("second_order_lr", second_order_lr)):
        if value <= 0:
            raise QuadranasError(f"{name} must be above 0, got {value}")
    factors = {id(p) for layer in layers.values() for p in second_order_parameters(layer)}
    groups = []
    for second_order, decay in zip((False, True), decays, strict=True):
        members = [p for p in model.parameters() if (id(p) in factors) == second_order]
        factor = second_order_lr if second_order else 1.0
        extra = {"lr": lr * factor, "lr_factor": factor, "second_order": second_order}
        groups += [group | extra for group in decay_groups(members, decay) if group["params"]]
    return groups


def second_order_parameters(layer: QuadraticLayer) -> Iterator[nn.Parameter]:
    """Weights and biases of a layer's second-order parts; empty for form `linear`."""
    for name, branch in layer.branches.items():
        if name != FIRST_ORDER:
            yield from branch.parameters()
    matrix = getattr(layer, "matrix", None)
    if matrix is not None:
        yield matrix


class SecondOrderControl:
    """Warm-up of the second-order learning rate, and a bound on the product, in every step.

    It hooks into an optimiser made with `quadratic_parameter_groups`. In the n-th step (from 1)
    the learning rates of the second-order groups are multiplied by
    `min(1, n / (warmup_steps + 1))`, on top of any scheduler. After the step `clip_products` is
    applied. The number of steps is stored in the groups and so in the optimiser's state dict:
    training that continues from a checkpoint continues the warm-up.

    Args:
        warmup_steps: number of steps of the warm-up; 0: no warm-up.
        max_product: the bound; None: no bound.

    Raises:
        QuadranasError: no second-order group, or a number is out of range.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        warmup_steps: int = 0,
        max_product: float | None = None,
    ) -> None:
        if not any(group.get("second_order") for group in optimizer.param_groups):
            raise QuadranasError(
                "the optimiser has no second-order group",
                "Make it with quadratic_parameter_groups(model, lr=...).",
            )
        if warmup_steps < 0:
            raise QuadranasError(f"warmup_steps must be 0 or more, got {warmup_steps}")
        _check_bound(max_product)
        self.model, self.warmup_steps, self.max_product = model, warmup_steps, max_product
        self._set_rates: list[float] = []
        self._handles = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        )

    def remove(self) -> None:
        """Remove the hooks from the optimiser."""
        for handle in self._handles:
            handle.remove()

    def _groups(self, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
        return [group for group in optimizer.param_groups if group.get("second_order")]

    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = self._groups(optimizer)
        self._set_rates = [group["lr"] for group in groups]
        for group in groups:
            group["steps_done"] = group.get("steps_done", 0) + 1
            group["lr"] = group["lr"] * min(1.0, group["steps_done"] / (self.warmup_steps + 1))

    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group, rate in zip(self._groups(optimizer), self._set_rates, strict=True):
            group["lr"] = rate
        if self.max_product is not None:
            clip_products(self.model, self.max_product)


@torch.no_grad()
def clip_products(model: nn.Module, max_product: float) -> int:
    """Scale down, in place, the second-order terms that are too large.

    For each neuron `o`, with `a_o` its weights and bias in branch `a`:

        p = |a_o| |b_o|         s = min(1, max_product / p)
        a_o <- s^(1/2) a_o      b_o <- s^(1/2) b_o

    so that its second-order term is at most `max_product (|x|^2 + 1)` for any input x (by
    Cauchy-Schwarz; the 1 comes from the bias), and the ratio of the factors is unchanged. With
    one factor, `p = |a_o|^2` (`output_square`) or `|a_o|` (`input_square`); with a matrix, `p` is
    its Frobenius norm. Layers with normalised branches are skipped: their outputs do not depend
    on the size of the weights.

    Returns: the number of neurons that were scaled.

    Raises:
        QuadranasError: the bound is not above 0.
    """
    _check_bound(max_product)
    clipped = 0
    for layer in quadratic_layers(model).values():
        if not len(layer.norms):
            for factors, power in _products(layer):
                clipped += _clip(factors, power, max_product)
    return clipped


def _products(layer: QuadraticLayer) -> Iterator[tuple[list[list[Tensor]], int]]:
    """The products to bound: the tensors of one or two factors, and the power of a factor."""
    names = [name for name in layer.branches if name != FIRST_ORDER]
    if names:
        factors: list[list[Tensor]]
        factors = [list(layer.get_submodule(name).parameters()) for name in names]
        yield factors, 2 if layer.form == "output_square" else 1
    matrix = getattr(layer, "matrix", None)
    if matrix is not None:
        yield [[matrix]], 1


def _clip(factors: list[list[Tensor]], power: int, max_product: float) -> int:
    """Bound one product for every output; axis 0 of all tensors is the output."""
    product = torch.ones(())
    for tensors in factors:
        squares = [t.reshape(len(t), -1).square().sum(1) for t in tensors]
        product = product.to(squares[0]) * torch.stack(squares).sum(0).sqrt() ** power
    scale = (max_product / product).clamp(max=1) ** (1 / (power * len(factors)))
    for tensors in factors:
        for tensor in tensors:
            tensor.mul_(scale.reshape(-1, *(1 for _ in tensor.shape[1:])))
    return int((product > max_product).sum())


def _check_bound(max_product: float | None) -> None:
    if max_product is not None and not max_product > 0:
        raise QuadranasError(f"max_product must be above 0, got {max_product}")
