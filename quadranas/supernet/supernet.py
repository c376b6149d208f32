"""The supernet: all candidates of a search space, connected by gates."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Size, Tensor, nn

from quadranas.acceleration.accelerator import Accelerator
from quadranas.acceleration.batch_norm import synchronize
from quadranas.layers import build_op
from quadranas.layers.replacement import Zeros
from quadranas.network.skeleton import Network
from quadranas.space.architecture import Architecture
from quadranas.space.operation import OpSpec
from quadranas.space.own_space_file import REST
from quadranas.space.search_space import SKIPPED, Choices, SearchSpace, Slot, SpaceBlock
from quadranas.supernet.gates import KEEP, Gates, Sample, gate_infos
from quadranas.supernet.nested import NestedCandidate, can_nest, largest_of, nested_candidate
from quadranas.supernet.own_supernet import Rest, own_parts, prefix_of, put_parts
from quadranas.supernet.routes import Route, take


class MixedOp(nn.Module):
    """The candidates of one slot and the route through them.

    Args:
        paths: the candidates.
        shared: the largest one, if the candidates are parts of it; None if each has weights of
            its own.
    """

    def __init__(
        self, slot: Slot, paths: Sequence[nn.Module], shared: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.paths = tuple(paths)
        self.specs = slot.candidates
        self.is_nested = shared is not None
        if shared is not None:
            self.shared = shared
        else:
            self.candidates = nn.ModuleList(paths)
        self.route = Route()

    def forward(self, x: Tensor) -> Tensor:
        """Run the active candidate."""
        return take(self.route, self.paths, x)

    @property
    def owners(self) -> tuple[tuple[OpSpec, nn.Module], ...]:
        """The modules that hold weights, with their operations: all candidates, or `shared`."""
        if self.is_nested:
            return ((largest_of(self.specs), self.shared),)
        return tuple(zip(self.specs, self.paths, strict=True))

    @property
    def nests_expansions(self) -> bool:
        """Whether candidates are the first hidden units of a larger one."""
        return self.is_nested and len({spec.expand_ratio for spec in self.specs}) > 1


def mixed_op(slot: Slot, *, nested: bool) -> MixedOp:
    """The candidates of a slot, with random weights.

    Args:
        nested: whether the candidates are parts of the largest one, where they can be.
    """
    if nested and len(slot.candidates) > 1 and can_nest(slot.candidates):
        shared = build_op(largest_of(slot.candidates))
        return MixedOp(slot, [nested_candidate(s, shared) for s in slot.candidates], shared)
    return MixedOp(slot, [build_op(spec) for spec in slot.candidates])


class MixedBlock(nn.Module):
    """The slots of one block, kept or skipped as a whole if it is optional.

    Args:
        skipped: what it returns if it is skipped.
    """

    def __init__(
        self, slots: Iterable[MixedOp], *, optional: bool, skipped: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.slots = nn.ModuleList(slots)
        self.optional = optional
        self._skipped = skipped or nn.Identity()
        self.route = Route(active=KEEP)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block, or return its input or zeros."""
        return take(self.route, (self._run, self._skipped), x)

    def _run(self, x: Tensor) -> Tensor:
        for slot in self.slots:
            x = slot(x)
        return x


class Supernet(nn.Module):
    """All networks of a space: a `Network` whose blocks hold every candidate, and its gates.

    The forward pass computes the path that was set last with `set_sample` or `set_choices`.

    Args:
        generator: of the gates' initial values.
        nested: whether the candidates of a slot share weights (`quadranas.supernet.nested`).
    """

    def __init__(
        self, space: SearchSpace, generator: torch.Generator, *, nested: bool = False
    ) -> None:
        super().__init__()
        self.space = space
        own = None if space.model is None else _own_network(space)
        if own is None:
            blocks = {block.name: _mixed_block(block, nested=nested) for block in space.blocks}
            own = Network(blocks), blocks
        self.network, self._blocks = own
        self.gates = Gates(gate_infos(space), generator)
        self.routes = tuple(self._route(info.block, info.slot) for info in self.gates.infos)

    def synchronize(self) -> None:
        """Have BatchNorm use the statistics of all processes."""
        synchronize(self)
        for _, candidate in self.candidates():
            if isinstance(candidate, NestedCandidate):
                candidate.synchronize()

    def place(self, accelerator: Accelerator) -> None:
        """Move the weights to an accelerator; the gates stay on the processor."""
        accelerator.place(self.network)

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 3, H, W) to (B, num_classes)."""
        logits: Tensor = self.network(images)
        return logits

    def _block(self, name: str) -> MixedBlock:
        return self._blocks[name]

    def slots(self, name: str) -> list[MixedOp]:
        """The slots of a block."""
        return [slot for slot in self._block(name).slots if isinstance(slot, MixedOp)]

    def _route(self, block: str, slot: int | None) -> Route:
        return self._block(block).route if slot is None else self.slots(block)[slot].route

    def shares_weights(self) -> Tensor:
        """Whether the candidates of a gate share weights, shape (num_gates, 1)."""
        nested = [
            info.slot is not None and self.slots(info.block)[info.slot].is_nested
            for info in self.gates.infos
        ]
        return torch.tensor(nested, dtype=torch.bool)[:, None]

    def set_sample(self, sample: Sample, *, recompute: bool = False) -> None:
        """Route the next passes by a sample."""
        involved = sample.involved.tolist()
        for route, active, row in zip(self.routes, sample.active.tolist(), involved, strict=True):
            route.active = active
            route.inactive = tuple(i for i, on in enumerate(row) if on and i != active)
            route.recompute = recompute
            route.gradients.clear()

    def set_choices(self, choices: Choices) -> None:
        """Route the next passes through one architecture."""
        self.set_sample(self.gates.sample_of(choices))

    def path_gradients(self) -> tuple[Tensor, Tensor]:
        """dL/dg of the last backward pass, and where it is defined; both (num_gates, width).

        It is not defined for gates inside a skipped block.
        """
        gradients = torch.zeros_like(self.gates.alpha)
        rows, columns, values = [], [], []
        for row, route in enumerate(self.routes):
            for column, value in route.gradients.items():
                rows.append(row)
                columns.append(column)
                values.append(value)
        if values:
            gradients[rows, columns] = torch.stack(values).to(gradients)
        reached = torch.zeros_like(self.gates.mask)
        reached[rows, columns] = True
        return gradients, reached

    def active_modules(self) -> Iterator[nn.Module]:
        """The candidates on the current path, in order."""
        for name, block in self._blocks.items():
            if block.route.active == KEEP:
                yield from (slot.paths[slot.route.active] for slot in self.slots(name))

    def active_parameters(self) -> list[nn.Parameter]:
        """The weights on the current path."""
        return [p for module in self.active_modules() for p in module.parameters()]

    def active_parts(self) -> dict[nn.Parameter, Size]:
        """The weights on the current path, each with the shape of the part that the path uses."""
        parts: dict[nn.Parameter, Size] = {}
        for module in self.active_modules():
            if isinstance(module, NestedCandidate):
                parts |= module.parts()
            else:
                parts |= {parameter: parameter.shape for parameter in module.parameters()}
        return parts

    def candidates(self) -> Iterator[tuple[str, nn.Module]]:
        """All candidates with their names, such as `stage1_block2: feed_forward 8->8 r8 e2`."""
        for block in self.space.blocks:
            for slot, mixed in zip(block.slots, self.slots(block.name), strict=True):
                if isinstance(mixed.paths[0], Rest):
                    continue
                for spec, candidate in zip(slot.candidates, mixed.paths, strict=True):
                    yield f"{block.name}: {spec}", candidate

    def subnet_tensors(self, architecture: Architecture) -> dict[str, Tensor]:
        """The weights that a derived network inherits, by their names in that network."""
        choices = self.space.choices_of(architecture)
        tensors = {}
        for block in self.space.blocks:
            choice = choices[block.name]
            if choice is SKIPPED:
                continue
            for slot, mixed, index in zip(
                block.slots, self.slots(block.name), choice, strict=True
            ):
                prefix = prefix_of(block.name, slot.candidates[index])
                for name, tensor in mixed.paths[index].state_dict().items():
                    tensors[f"{prefix}{name}"] = tensor.clone()
        return tensors


def _mixed_block(block: SpaceBlock, *, nested: bool) -> MixedBlock:
    slots = [mixed_op(slot, nested=nested) for slot in block.slots]
    return MixedBlock(slots, optional=block.optional)


def _own_network(space: SearchSpace) -> tuple[Network, dict[str, MixedBlock]]:
    """The user's own model with mixed parts, and these with everything else by name."""
    assert space.model is not None
    model, parts = own_parts(space)
    blocks = {}
    for block in space.blocks[:-1]:
        shared, *candidates = parts[block.name]
        mixed = MixedOp(block.slots[0], candidates, shared)
        skipped = Zeros() if block.name in space.model.added else None
        blocks[block.name] = MixedBlock([mixed], optional=block.optional, skipped=skipped)
    put_parts(model, space, blocks)
    rest = MixedOp(space.blocks[-1].slots[0], [Rest(model, tuple(space.model.parts.values()))])
    mixed_rest = MixedBlock([rest], optional=False)
    return Network({REST: model}), {**blocks, REST: mixed_rest}


def build_supernet(space: SearchSpace, *, seed: int, nested: bool = False) -> Supernet:
    """A supernet with random weights and gates; PyTorch's global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Supernet(space, torch.Generator().manual_seed(seed), nested=nested)
