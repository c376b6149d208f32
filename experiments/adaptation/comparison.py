"""What several ways of training come to, over seeds."""

import statistics
from collections.abc import Sequence
from typing import Any

SCRATCH = "from scratch, high order"
Curve = list[dict[str, float]]


def compared(curves: Sequence[dict[str, Curve]], name: str) -> dict[str, Any]:
    """One way over all seeds: its accuracy, and its cost where it equals training from scratch.

    The target of a seed is the accuracy with which training from scratch ends; a cost is that of
    the first point at or above it, as a share of training from scratch's own first such point.
    """
    shares: dict[str, list[float]] = {"steps": [], "cpu_s": []}
    for seed in curves:
        target = seed[SCRATCH][-1]["accuracy"]
        own, scratch = (
            next((point for point in seed[way] if point["accuracy"] >= target), None)
            for way in (name, SCRATCH)
        )
        if own and scratch:
            for unit, found in shares.items():
                found.append(own[unit] / scratch[unit])
    return {
        "accuracy": _spread([seed[name][-1]["accuracy"] for seed in curves]),
        "cpu_s": _spread([seed[name][-1]["cpu_s"] for seed in curves]),
        "seeds_at_target": len(shares["steps"]),
        "share_of_steps_to_target": _spread(shares["steps"]),
        "share_of_cpu_s_to_target": _spread(shares["cpu_s"]),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "std": deviation}
