"""How weights from a pre-trained network are trained: more slowly than new ones, or not at all.

Source: QuadraNet V2, Xu et al., 2024 (arXiv:2405.03192), which adds quadratic terms of zero to
pre-trained weights. The rates, the warm-up of the factors and their defaults are our own choices.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from quadranas.network.skeleton import Network
from quadranas.runs.config import PretrainedConfig, WeightConfig
from quadranas.space.matching import stage_of
from quadranas.space.own_space_file import REST
from quadranas.supernet.embedding import Embedding
from quadranas.supernet.own_embedding import FIRST_ORDER_TERMS, name_in_model
from quadranas.supernet.supernet import Supernet
from quadranas.training.network_phase import MakeOptimizer
from quadranas.training.optimizers import build_optimizer, decay_groups, optimizer_of

Role = Literal["inherited", "new", "quadratic"]


@dataclass(frozen=True)
class Inheritance:
    """Which weights of a supernet, and of its sub-networks, come from a pre-trained network.

    Args:
        embedding: what the supernet took from the network.
        new: names of the network's tensors that its checkpoint did not have: quadratic factors.
        config: how these weights are trained.
        own_layers: paths of the layers of a user's own model that have a second-order version;
            None for networks of operations of this package.
    """

    embedding: Embedding
    new: frozenset[str]
    config: PretrainedConfig
    own_layers: frozenset[str] | None = None

    def role(self, block: str, kind: str, name: str) -> Role:
        """The role of a parameter.

        Args:
            block: the block of the space that it belongs to.
            kind: the kind of its operation.
            name: its name within the operation, or within a user's own model.
        """
        if self.own_layers is not None:
            return self._own_role(name)
        origin = self.embedding.origins[block]
        is_head = name.startswith("linear.")
        if origin is None or (is_head and not self.embedding.has_head):
            return "new"
        return "quadratic" if f"blocks.{origin}.{kind}.{name}" in self.new else "inherited"

    def _own_role(self, name: str) -> Role:
        """The role of a parameter of a user's own model: what is added to a layer is new."""
        for layer in self.own_layers or ():
            if name.startswith(f"{layer}."):
                leaf = name.removeprefix(f"{layer}.")
                is_own = leaf in ("weight", "bias") or leaf.startswith(FIRST_ORDER_TERMS)
                return "inherited" if is_own else "quadratic"
        return "inherited"

    def supernet_optimizer(
        self, supernet: Supernet, weights: WeightConfig
    ) -> torch.optim.Optimizer:
        """The optimiser of a supernet's weights, with a rate for each role."""
        roles = {
            parameter: self.role(block.name, spec.kind, name_in_model(spec, name))
            for block in supernet.space.blocks
            for mixed in supernet.slots(block.name)
            for spec, module in mixed.owners
            for name, parameter in module.named_parameters()
        }
        return self._optimizer(roles, weights)

    def network_optimizer(self, network: Network, weights: WeightConfig) -> torch.optim.Optimizer:
        """The optimiser of a sub-network by itself, with a rate for each role."""
        roles = {}
        for path, parameter in network.named_parameters():
            if self.own_layers is not None:
                roles[parameter] = self._own_role(path.removeprefix(f"blocks.{REST}."))
                continue
            _, block, kind, name = path.split(".", 3)
            roles[parameter] = self.role(block, kind, name)
        return self._optimizer(roles, weights)

    def _optimizer(
        self, roles: dict[nn.Parameter, Role], weights: WeightConfig
    ) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = []
        for role, factor in self._factors().items():
            members = [p for p, found in roles.items() if found == role and p.requires_grad]
            found = decay_groups(members, weights.weight_decay)
            extra = {"lr_factor": factor, "role": role}
            groups += [group | extra for group in found if group["params"]]
        return optimizer_of(groups, weights)

    def _factors(self) -> dict[Role, float]:
        rates = self.config
        return {"inherited": rates.rate, "new": 1.0, "quadratic": rates.quadratic_rate}

    def warm_up(self, optimizer: torch.optim.Optimizer, step: int, num_steps: int) -> None:
        """Set the rate of the quadratic factors for a step of the supernet, from 0."""
        warmup = round(self.config.quadratic_warmup * num_steps)
        for group in optimizer.param_groups:
            if group["role"] == "quadratic":
                risen = min(1.0, (step + 1) / (warmup + 1))
                group["lr_factor"] = self.config.quadratic_rate * risen

    def freeze(self, network: Network) -> None:
        """Keep the weights and statistics of the first stages of a network as they are."""
        network.frozen = _first_stages(network, self.config.frozen_stages)
        for name in network.frozen:
            network.blocks[name].requires_grad_(requires_grad=False)
        network.train(network.training)


def _first_stages(network: Network, number: int) -> frozenset[str]:
    """The names of the blocks in the first stages of a network."""
    first = list(dict.fromkeys(map(stage_of, network.blocks)))[:number]
    return frozenset(name for name in network.blocks if stage_of(name) in first)


def optimizer_for(inheritance: Inheritance | None) -> MakeOptimizer:
    """The function that makes the optimiser of a sub-network."""
    return build_optimizer if inheritance is None else inheritance.network_optimizer
