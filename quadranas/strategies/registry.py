"""The strategies by name."""

import importlib
from dataclasses import dataclass

from quadranas.errors import unknown
from quadranas.extras import require_extra
from quadranas.strategies.interface import Strategy


@dataclass(frozen=True)
class StrategyFacts:
    """What is known of a strategy without importing it.

    Args:
        place: module and class.
        summary: what it does, in words.
        package: a package that it needs, which the extra of the same name installs.
        has_storage: whether several processes can share its trials in a storage.
        needs_gates: whether it needs the gates of a supernet.
    """

    place: str
    summary: str
    package: str = ""
    has_storage: bool = False
    needs_gates: bool = False


STRATEGIES = {
    "gates": StrategyFacts(
        "quadranas.strategies.sampled:Gates",
        "the networks that the gates of the supernet prefer most, exactly",
        needs_gates=True,
    ),
    "random": StrategyFacts("quadranas.strategies.sampled:Chance", "random networks"),
    "evolution": StrategyFacts(
        "quadranas.strategies.sampled:Evolution", "mutation and crossover of the best networks"
    ),
    "reinforce": StrategyFacts(
        "quadranas.strategies.sampled:Reinforce", "REINFORCE, as in ProxylessNAS"
    ),
    "nsga2": StrategyFacts(
        "quadranas.strategies.studies:Nsga2",
        "NSGA-II by Optuna: accuracy against latency",
        package="optuna",
        has_storage=True,
    ),
    "tpe": StrategyFacts(
        "quadranas.strategies.studies:Tpe",
        "tree-structured Parzen estimators by Optuna",
        package="optuna",
        has_storage=True,
    ),
}


def load_strategy(name: str) -> type[Strategy]:
    """The class of a strategy.

    Raises:
        QuadranasError: there is no such strategy, or it needs an extra that is not installed.
    """
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    facts = STRATEGIES[name]
    if facts.package:
        require_extra(facts.package, facts.package)
    module, _, attribute = facts.place.partition(":")
    found: type[Strategy] = getattr(importlib.import_module(module), attribute)
    return found
