"""Fronts of accuracy against latency as tables on the console."""

from typing import TYPE_CHECKING

from rich.table import Table

from quadranas.cli.console import print_table, say

if TYPE_CHECKING:
    from quadranas.commands.pareto import ParetoResult
    from quadranas.runs.fronts import DeviceFront


def show_fronts(result: "ParetoResult") -> None:
    """Print the front of every device, and what is lost by carrying networks between them."""
    for device in result.devices:
        print_table(_front(result, device))
    if result.carried:
        print_table(_losses(result))
    say(
        f"{len(result.networks)} networks judged on held-out images with the supernet's weights\n"
        f"fronts {result.path}, report {result.report}"
    )


def _front(result: "ParetoResult", device: "DeviceFront") -> Table:
    table = Table(title=f"{device.device}, {device.min_ms:.4g} to {device.max_ms:.4g} ms")
    table.add_column("latency [ms]", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("found for")
    for index in device.front:
        network = result.networks[index]
        found = ", ".join(f"{f.device} at {f.relative_budget:.0%}" for f in network.found_for)
        latency = f"{network.latencies_ms[device.device]:.4g}"
        table.add_row(latency, f"{network.accuracy:.2%}", found)
    return table


def _losses(result: "ParetoResult") -> Table:
    table = Table(title="networks carried to another device at the same relative budget")
    names = ("found for", "carried to", "budget [ms]", "excess", "own", "carried", "loss")
    for name in names:
        table.add_column(name, justify="left" if name in names[:2] else "right")
    for one in result.carried:
        table.add_row(
            one.source,
            one.target,
            f"{one.budget_ms:.4g}",
            _share(one.excess),
            _share(one.own_accuracy),
            _share(one.accuracy),
            _share(one.loss),
        )
    return table


def _share(share: float | None) -> str:
    return "none" if share is None else f"{share:.2%}"
