"""A latency table for one device made of another's, by measuring a few whole networks.

The latency that operations of one kind (and kernel size) add to a network is multiplied by one
factor per kind. The factors are fitted to the networks by least squares of the relative error,
with the factor that all kinds have in common as the prior: what the networks do not tell about a
kind, it takes from the others. The idea is that of few-shot latency predictors, such as HELP
(Lee et al., NeurIPS 2021, arXiv:2106.08630), without their neural networks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.optimize import lsq_linear

from quadranas.latency.calibration import Calibration, NetworkLatency, calibrate, fit_scale
from quadranas.latency.table import LatencyTable, TableEntry, Transfer
from quadranas.space.architecture import Architecture
from quadranas.space.operation import OpSpec
from quadranas.space.sampling import random_architectures
from quadranas.space.search_space import SearchSpace

PRIORS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Weights of the prior that cross-validation chooses from: squared relative error that a network
may gain for a factor to differ by 100 % from the common one."""

LEAST, MOST = 0.05, 20.0
"""Limits of a factor, relative to the common one."""

POOL = 300
"""Number of random networks among which those to measure are chosen."""

DESIGN_PRIOR = 0.01
"""What is known about every factor before a network is measured, as so many networks."""


def kind_of(spec: OpSpec) -> str:
    """The operations that have one factor in common, such as `mbconv k5`."""
    return f"{spec.kind} k{spec.kernel_size}"


def added_ms(table: LatencyTable, network: Architecture, kinds: Sequence[str]) -> list[float]:
    """The latency that the operations of each kind add to a network."""
    sums = dict.fromkeys(kinds, 0.0)
    for op in network.ops():
        sums[kind_of(op)] += table.op_ms(op)
    return list(sums.values())


@dataclass(frozen=True)
class Samples:
    """Networks of known latency, and what another device's table says about them.

    Args:
        added_ms: what the operations of each kind add there, (networks, kinds).
        measured_ms: latency of each network here, (networks,).
        null_ms: latency of a call without work here.
    """

    added_ms: np.ndarray
    measured_ms: np.ndarray
    null_ms: float

    def __len__(self) -> int:
        return len(self.measured_ms)

    def without(self, row: int) -> "Samples":
        """All networks but one."""
        others = np.arange(len(self)) != row
        return Samples(self.added_ms[others], self.measured_ms[others], self.null_ms)

    def factors(self, prior: float) -> np.ndarray:
        """The factor of each kind, (kinds,).

        Args:
            prior: its weight, one of `PRIORS`.
        """
        sums = self.added_ms.sum(axis=1)
        common = fit_scale(sums.tolist(), self.measured_ms.tolist(), self.null_ms)
        num_kinds = self.added_ms.shape[1]
        weight = math.sqrt(prior * len(self))
        rows = common * self.added_ms / self.measured_ms[:, None]
        target = 1 - self.null_ms / self.measured_ms
        relative = lsq_linear(
            np.vstack([rows, weight * np.eye(num_kinds)]),
            np.concatenate([target, np.full(num_kinds, weight)]),
            bounds=(LEAST, MOST),
        ).x
        return np.asarray(common * relative)

    def left_out_ms(self, prior: float | None = None) -> np.ndarray:
        """The latency of each network by factors that were fitted to the others, (networks,).

        Args:
            prior: its weight; `None` to choose it for every network by the others.
        """
        found = []
        for row in range(len(self)):
            others = self.without(row)
            factors = others.factors(others.best_prior() if prior is None else prior)
            found.append(self.added_ms[row] @ factors + self.null_ms)
        return np.array(found)

    def best_prior(self) -> float:
        """The weight of the prior with the least error of networks that were left out."""

        def error(prior: float) -> float:
            return float(np.abs(self.left_out_ms(prior) / self.measured_ms - 1).mean())

        return min(PRIORS, key=error)


@dataclass(frozen=True)
class Transferred:
    """The entries of a table that was made of another one.

    Args:
        entries: with one null call each.
        transfer: for the table's header.
        calibration: the networks, each with its latency by factors fitted to the others.
    """

    entries: tuple[TableEntry, ...]
    transfer: Transfer
    calibration: Calibration

    @property
    def mape(self) -> float:
        """Mean absolute error of the networks, relative to the measurements."""
        networks = self.calibration.networks
        return fmean(abs(n.predicted_ms / n.measured_ms - 1) for n in networks)


def transferred(
    source: LatencyTable,
    specs: Sequence[OpSpec],
    measured: Sequence[tuple[Architecture, float]],
    null_ms: float,
) -> Transferred:
    """Make the entries of another device's table fit networks that were measured.

    Args:
        source: the other device's table.
        specs: the operations that get an entry.
        measured: networks and their latencies in milliseconds.
        null_ms: latency of a call without work.
    """
    networks = [network for network, _ in measured]
    ops = (op for network in networks for op in network.ops())
    kinds = sorted({kind_of(spec) for spec in (*specs, *ops)})
    samples = Samples(
        np.array([added_ms(source, network, kinds) for network in networks]),
        np.array([ms for _, ms in measured]),
        null_ms,
    )
    prior = samples.best_prior()
    factors = dict(zip(kinds, samples.factors(prior).tolist(), strict=True))
    latencies = [
        NetworkLatency(name=network.name, predicted_ms=predicted, measured_ms=ms)
        for (network, ms), predicted in zip(measured, samples.left_out_ms().tolist(), strict=True)
    ]
    entries = tuple(
        TableEntry(op=spec, latency_ms=factors[kind_of(spec)] * source.op_ms(spec) + null_ms)
        for spec in specs
    )
    header = source.header
    origin = f"{header.device}: {header.summary()}"
    transfer = Transfer(source=origin, factors=factors, prior=prior)
    return Transferred(entries, transfer, calibrate(latencies))


def network_pool(space: SearchSpace) -> list[Architecture]:
    """The networks of a space among which those to measure are chosen."""
    return random_architectures(space, POOL, "calibrate")


def telling_networks(space: SearchSpace, source: LatencyTable, number: int) -> list[Architecture]:
    """The networks that tell most about the factors: a greedy D-optimal design.

    Args:
        number: the number of networks; a space that has fewer gives fewer.
    """
    pool = network_pool(space)
    kinds = sorted({kind_of(op) for network in pool for op in network.ops()})
    sums = np.array([added_ms(source, network, kinds) for network in pool])
    shares = sums / sums.sum(axis=1, keepdims=True)
    covariance = np.eye(len(kinds)) / DESIGN_PRIOR
    chosen: list[int] = []
    for _ in range(min(number, len(pool))):
        gains = np.einsum("nk,kl,nl->n", shares, covariance, shares)
        gains[chosen] = -1.0
        best = int(gains.argmax())
        chosen.append(best)
        step = covariance @ shares[best]
        covariance -= np.outer(step, step) / (1 + gains[best])
    return [pool[index] for index in sorted(chosen)]
