"""Draw the figures of docs/explanation/: `PYTHONPATH=. python docs/figures.py`.

They use colours that can be read on light and on dark pages.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from quadranas.layers.quadratic import QuadraticLinear

HERE = Path(__file__).parent / "explanation"
EXPERIMENTS = Path(__file__).parents[1] / "experiments"
GREY, BLUE, ORANGE = "#808890", "#4c72d0", "#e0803a"
STYLE: Any = {
    **{f"{part}.color": GREY for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}": GREY for part in ("edgecolor", "labelcolor", "titlecolor")},
    **{"axes.spines.top": False, "axes.spines.right": False, "font.size": 9},
    **{"svg.hashsalt": "quadranas", "svg.fonttype": "path", "legend.frameon": False},
}


def results(experiment: str) -> Any:
    """The results of an experiment."""
    return json.loads((EXPERIMENTS / experiment / "results.json").read_text("utf-8"))


def box(axes: Axes, place: tuple[float, float], text: str, colour: str) -> None:
    """A box with a text in it."""
    x, y = place
    shape = FancyBboxPatch(
        (x - 1.35, y - 0.28), 2.7, 0.56, boxstyle="round,pad=0.04", fill=False, edgecolor=colour
    )
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", color=colour)


def gates() -> Figure:
    """A block of the supernet under one draw of its gates."""
    figure, axes = plt.subplots(figsize=(7, 2.2))
    axes.set(xlim=(-0.7, 10.5), ylim=(0.5, 4.1))
    axes.axis("off")
    slots = {
        "kernel gate": ({"kernel 3": 0.25, "kernel 5": 0.45, "kernel 7": 0.3}, 1),
        "expansion gate": ({"expansion 2": 0.6, "expansion 4": 0.25, "expansion 6": 0.15}, 0),
        "depth gate": ({"keep": 0.9, "skip": 0.1}, 0),
    }
    before = (-0.7, 2.0)
    for x, (title, (candidates, drawn)) in zip((1.5, 5.2, 8.9), slots.items(), strict=True):
        axes.text(x, 3.75, title, ha="center", weight="bold")
        for row, (name, share) in enumerate(candidates.items()):
            box(axes, (x, 3 - row), f"{name}:  {share:.2f}", ORANGE if row == drawn else GREY)
        arrow = FancyArrowPatch(before, (x - 1.35, 3 - drawn), color=ORANGE, mutation_scale=12)
        axes.add_patch(arrow)
        before = (x + 1.35, 3 - drawn)
    return figure


def budget() -> Figure:
    """Measured latencies against the budgets for which networks were decoded."""
    networks = results("budget_contract")["networks"]
    budgets = [network["budget_ms"] for network in networks]
    shares = [100 * n["measured_ms"] / n["budget_ms"] for n in networks]
    figure, axes = plt.subplots(figsize=(6, 2.6))
    axes.axhline(100, color=ORANGE, linewidth=1)
    axes.text(budgets[-1], 100.3, "budget", color=ORANGE, ha="right", va="bottom")
    axes.plot(budgets, shares, "o", color=BLUE, markersize=4)
    axes.set(xlabel="budget in ms", ylabel="measured latency\nin % of the budget", ylim=(88, 103))
    return figure


def predictions() -> Figure:
    """Predicted and measured latencies of the same networks."""
    networks = results("budget_contract")["networks"]
    predicted = [network["predicted_ms"] for network in networks]
    measured = [network["measured_ms"] for network in networks]
    figure, axes = plt.subplots(figsize=(4, 3.4))
    ends = [0, max(measured + predicted) * 1.05]
    axes.plot(ends, ends, color=GREY, linewidth=0.8)
    axes.plot(predicted, measured, "o", color=BLUE, markersize=4)
    axes.set(
        xlabel="predicted by the table, in ms", ylabel="measured, in ms", xlim=ends, ylim=ends
    )
    return figure


def memory() -> Figure:
    """Memory of blocks relative to a depthwise one, here and in the paper."""
    blocks = results("block_memory")["channels"]["64"]
    names = {
        "skip": "no convolution",
        "depthwise": "depthwise",
        "quadra": "quadratic,\nmemory-\nefficient",
        "quadra_direct": "quadratic,\nautograd",
        "swin": "Swin",
        "hornet": "HorNet",
    }
    figure, axes = plt.subplots(figsize=(7, 2.8))
    places = np.arange(len(names))
    keys = {"saved_bytes": "kept for the backward pass", "paper_mb": "paper, training memory"}
    for shift, (key, label) in zip((-0.2, 0.2), keys.items(), strict=True):
        heights = [blocks[name][key] / blocks["depthwise"][key] for name in names]
        colour = BLUE if shift < 0 else GREY
        axes.bar(places + shift, heights, 0.38, label=label, color=colour)
    axes.set_xticks(places, list(names.values()))
    axes.set(ylabel="relative to depthwise", ylim=(0, 1.9))
    axes.legend(loc="upper left")
    return figure


def trained_neuron(form: str, points: torch.Tensor, labels: torch.Tensor) -> QuadraticLinear:
    """One neuron, trained on the points from the best of ten starts."""
    best, lowest = None, float("inf")
    for seed in range(10):
        torch.manual_seed(seed)
        neuron = QuadraticLinear(2, 1, form=form)
        optimizer = torch.optim.Adam(neuron.parameters(), lr=0.05)
        for _ in range(300):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                neuron(points)[:, 0], labels
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if loss.item() < lowest:
            best, lowest = neuron, loss.item()
    assert best is not None
    return best


def neurons() -> Figure:
    """What one neuron separates, of first and of second order."""
    torch.manual_seed(0)
    points = torch.rand(300, 2) * 2 - 1
    labels = (points[:, 0] * points[:, 1] > 0).float()
    grid = torch.linspace(-1, 1, 101)
    plane = torch.cartesian_prod(grid, grid)
    figure, panels = plt.subplots(1, 2, figsize=(6.4, 3.1))
    titles = {"linear": "c(x): {} of 300 right", "hadamard": "a(x) · b(x) + c(x): {} of 300 right"}
    for axes, (form, title) in zip(panels, titles.items(), strict=True):
        neuron = trained_neuron(form, points, labels)
        with torch.no_grad():
            right = int(((neuron(points)[:, 0] > 0).float() == labels).sum())
            field = neuron(plane).reshape(101, 101).T.numpy()
        axes.contourf(grid, grid, field > 0, levels=[0.5, 1], colors=[BLUE], alpha=0.25)
        for value, marker, colour in ((0, "x", ORANGE), (1, "o", BLUE)):
            chosen = points[labels == value]
            axes.plot(*chosen.T, marker, color=colour, markersize=3, linestyle="")
        axes.set(title=title.format(right), xticks=[], yticks=[], aspect="equal")
    return figure


def main() -> None:
    """Draw all figures."""
    mpl.use("svg")
    with mpl.rc_context(STYLE):
        for draw in (gates, budget, predictions, memory, neurons):
            figure = draw()
            path = HERE / f"{draw.__name__}.svg"
            figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
            path.write_text(
                "\n".join(line.rstrip() for line in path.read_text("utf-8").splitlines()) + "\n",
                "utf-8",
            )
            plt.close(figure)


if __name__ == "__main__":
    main()
