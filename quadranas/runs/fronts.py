"""Fronts of accuracy against latency in a run folder: `pareto.json`."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, FiniteFloat

from quadranas.errors import QuadranasError
from quadranas.files import read_json, write_json
from quadranas.latency.table import LatencyTable
from quadranas.runs import layout
from quadranas.space.search_space import SearchSpace
from quadranas.strategies.limits import reachable_ms
from quadranas.strategies.pareto import DEFAULT_POINTS, Judged, carrying, front
from quadranas.validation import Frozen, validate


class FoundFor(Frozen):
    """A budget that a network was found for.

    Args:
        device: name of the device.
        relative_budget: its place, from 0 to 1, between the fastest network and the slowest, in
            equal factors.
    """

    device: str
    relative_budget: FiniteFloat = Field(ge=0, le=1)


class JudgedNetwork(Frozen):
    """A network that was judged.

    Args:
        found_for: the budgets that the gates prefer it for.
        accuracy: its accuracy on held-out training images with the supernet's weights, from 0 to
            1.
        latencies_ms: predicted latency per device, in milliseconds.
        choices: per block with a choice the index of the candidate in each slot, or null for a
            skipped block.
    """

    found_for: tuple[FoundFor, ...]
    accuracy: FiniteFloat = Field(ge=0, le=1)
    latencies_ms: dict[str, FiniteFloat]
    choices: dict[str, tuple[int, ...] | None]


class DeviceFront(Frozen):
    """The front of one device.

    Args:
        device: name of the device.
        min_ms, max_ms: predicted latency of the fastest and of the slowest network of the space.
        table: the source of the latencies, in one line.
        front: index of each network that no faster one surpasses, the fastest first.
    """

    device: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    min_ms: FiniteFloat = Field(gt=0)
    max_ms: FiniteFloat = Field(gt=0)
    table: str
    front: tuple[int, ...]


class CarriedLoss(Frozen):
    """What a device loses at a budget with networks that were found for another one.

    Args:
        source: the device that the networks were found for.
        target: the device that they are carried to.
        relative_budget: place of the budget, from 0 to 1, between the fastest network and the
            slowest.
        budget_ms: the budget on the target.
        excess: by how much the network found for the source at the same relative budget exceeds
            the budget on the target, as a fraction of it; negative if it keeps it; None if no
            network was found there.
        own_accuracy: the best accuracy of a network found for the target that keeps the budget,
            from 0 to 1.
        accuracy: the best accuracy, from 0 to 1, of a network found for the source, at the same
            relative budget or a lower one, that keeps the budget on the target; None if none does.
        loss: the difference, as a fraction; negative if the carried network is better.
    """

    source: str
    target: str
    relative_budget: FiniteFloat
    budget_ms: FiniteFloat
    excess: FiniteFloat | None
    own_accuracy: FiniteFloat
    accuracy: FiniteFloat | None
    loss: FiniteFloat | None


class Fronts(Frozen):
    """Fronts of accuracy against latency.

    Args:
        devices: the fronts.
        networks: all networks that were judged.
        carried: the losses between all pairs of devices at all budgets.
    """

    devices: tuple[DeviceFront, ...]
    networks: tuple[JudgedNetwork, ...]
    carried: tuple[CarriedLoss, ...] = ()

    def save(self, folder: Path) -> Path:
        """Write the fronts into a run folder; returns the file's path."""
        write_json(folder / layout.PARETO, self.model_dump(mode="json"))
        return folder / layout.PARETO

    def points(self, device: DeviceFront) -> list[tuple[float, float]]:
        """Latency in milliseconds and accuracy of the networks on a front, fastest first."""
        found = [self.networks[index] for index in device.front]
        return [(one.latencies_ms[device.device], one.accuracy) for one in found]


def fronts_of(
    space: SearchSpace,
    tables: Sequence[LatencyTable],
    networks: Sequence[Judged],
    points: int = DEFAULT_POINTS,
) -> Fronts:
    """The fronts of networks that were judged, and the losses between the devices."""
    devices = []
    for table in tables:
        low, high = reachable_ms(space, table)
        device = table.header.device
        chosen = tuple(front(networks, device))
        summary = table.header.summary()
        devices.append(
            DeviceFront(device=device, min_ms=low, max_ms=high, table=summary, front=chosen)
        )
    losses = [
        CarriedLoss(
            source=one.source,
            target=one.target,
            relative_budget=one.relative,
            budget_ms=one.budget_ms,
            excess=one.excess,
            own_accuracy=one.own_accuracy,
            accuracy=one.accuracy,
            loss=None if one.accuracy is None else one.own_accuracy - one.accuracy,
        )
        for one in carrying(space, tables, networks, points)
    ]
    fixed = {block.name for block in space.blocks if block.is_fixed}
    described = [
        JudgedNetwork(
            found_for=tuple(FoundFor(device=d, relative_budget=r) for d, r in one.found),
            accuracy=one.accuracy,
            latencies_ms=dict(one.latencies_ms),
            choices={name: c for name, c in one.choices.items() if name not in fixed},
        )
        for one in networks
    ]
    return Fronts(devices=tuple(devices), networks=tuple(described), carried=tuple(losses))


def load_fronts(path: Path) -> Fronts:
    """Read the fronts of a run.

    Raises:
        QuadranasError: unreadable, incomplete, or with an impossible value.
    """
    fronts = validate(Fronts, read_json(path, "fronts"), path)
    for device in fronts.devices:
        for index in device.front:
            known = 0 <= index < len(fronts.networks)
            if not known or device.device not in fronts.networks[index].latencies_ms:
                raise QuadranasError(
                    f"{path}: devices: the front of {device.device!r} names network {index}, "
                    "which is not there or has no latency on it"
                )
    return fronts
