"""The figures of a report as inline SVG: the network as boxes, curves and bars by matplotlib.

Functions take plain data and return markup; the same data give the same bytes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from quadranas.errors import printable
from quadranas.reports.page import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, SOFT, plot
from quadranas.reports.run_view import SEARCHED, TIMES, BlockView, Run, fixed_ms, op_label
from quadranas.runs.records import Epoch
from quadranas.space.operation import EXPANDING, OpSpec

PARTS = {
    "patch_stem": ("stem", "#7d8590"),
    "conv_bn": ("first-order convolutions", "#7d8590"),
    "downsample": ("downsampling", "#b8bfc7"),
    "quadratic_depthwise": ("quadratic convolutions", "#2f6fa8"),
    "feed_forward": ("feed-forward", "#e0a03c"),
    "quadratic_convnext": ("quadratic ConvNeXt blocks", "#2f6fa8"),
    "mbconv": ("inverted bottlenecks", "#2f6fa8"),
    "quadratic_mbconv": ("quadratic inverted bottlenecks", "#2f6fa8"),
    "norm_head": ("head", "#6f5a86"),
    "linear_head": ("head", "#6f5a86"),
}
OWN_PARTS = {
    "own_block": ("searched parts of your own model", "#2f6fa8"),
    "own_rest": ("the rest of your own model", "#6f5a86"),
}
PHASES = {
    "warmup": ("warm-up", "#eef0f3"),
    "search": ("search", "#fdf3df"),
    "finetune": ("fine-tuning", "#e5f0ea"),
    "train": ("training", "#e5f0ea"),
    "resolution": ("deployment resolution", "#ece4f2"),
}
"""Per phase: its name in a figure and its colour."""


def part_of(kind: str) -> tuple[str, str]:
    """The part of a network that a kind of operation belongs to, and the part's colour."""
    return (PARTS | OWN_PARTS).get(kind, (kind.replace("_", " "), GREY))


def latency_parts(run: Run) -> dict[tuple[str, str], float]:
    """The predicted latency of a run's network per part, by name and colour, in milliseconds.

    Empty without a table.
    """
    parts: dict[tuple[str, str], float] = {}
    for block in run.blocks:
        for op, ms in zip(block.ops, block.ms or (), strict=bool(block.ms)):
            parts[part_of(op.kind)] = parts.get(part_of(op.kind), 0.0) + ms
    if run.table is not None and run.table.header.null_ms:
        parts["overhead per inference", "#d0d7de"] = run.table.header.null_ms
    return parts


# Drawing of the architecture. Lengths are in units of the drawing, about a pixel on a wide screen.

WIDTH, LEFT, BOX, PITCH, MAX_IN_ROW = 960, 160, 48, 54, 13
LOW, HIGH = 30.0, 60.0  # height of a box at the smallest and the largest expansion
BOLD, START, END = ' font-weight="600"', ' text-anchor="start"', ' text-anchor="end"'
GHOST = f'fill="none" stroke="{PALE}" stroke-dasharray="3 3"'
FIXED = f'fill="#e4e7eb" stroke="{PALE}"'


class _Scales:
    """Colour by kernel size and height by expansion, over all values in the search space."""

    def __init__(self, specs: Sequence[OpSpec]) -> None:
        searched = [op for op in specs if op.kind in SEARCHED]
        self.kernels = sorted({op.kernel_size for op in searched if op.kind != "feed_forward"})
        self.expansions = sorted({op.expand_ratio for op in searched if op.kind in EXPANDING})

    def fill(self, kernel_size: int) -> tuple[str, str]:
        """The colour of a box (light for the smallest kernel) and the colour of its text."""
        shade = 0.0
        if kernel_size in self.kernels[1:]:
            shade = self.kernels.index(kernel_size) / (len(self.kernels) - 1)
        light, dark = (0xB5, 0xD9, 0xEE), (0x17, 0x4A, 0x78)
        mixed = (round(a + shade * (b - a)) for a, b in zip(light, dark, strict=True))
        return "#" + "".join(f"{value:02x}" for value in mixed), "#fff" if shade > 0.4 else INK

    def height(self, block: BlockView) -> float:
        """The height of a block's box."""
        if block.skipped or not block.is_searched or block.expand_ratio is None:
            return LOW
        return self.height_of(block.expand_ratio)

    def height_of(self, expand_ratio: float) -> float:
        """The height of a box for an expansion ratio."""
        low, high = self.expansions[0], self.expansions[-1]
        return LOW + (HIGH - LOW) * (expand_ratio - low) / (high - low) if high > low else LOW


def _text(
    x: float, y: float, text: str, *, size: int = 11, fill: str = INK, more: str = ""
) -> str:
    """A line of text centred at `x`, unless `more` sets another anchor."""
    anchor = "" if "text-anchor" in more else ' text-anchor="middle"'
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}"'
    return f"<text {place}{anchor}{more}>{escape(text)}</text>"


def _box(x: float, bottom: float, width: float, height: float, style: str) -> str:
    place = f'x="{x:g}" y="{bottom - height:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {place} rx="4" {style}/>'


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def draw_architecture(blocks: Sequence[BlockView], specs: Sequence[OpSpec]) -> str:
    """The network, with a row per stage and a box per block; skipped blocks are dashed outlines.

    Args:
        specs: all operations of the search space; they determine colours and heights.
    """
    scales = _Scales(specs)
    total_ms = sum(sum(block.ms) for block in blocks if block.ms)
    parts = list(_legend(scales, skips=any(block.skipped for block in blocks)))
    y = 58.0
    for stage, members in _stages(blocks).items():
        parts.append(f'<path d="M0 {y:g}H{WIDTH}" stroke="#e4e7eb"/>')
        in_row = math.ceil(len(members) / math.ceil(len(members) / MAX_IN_ROW))
        for start in range(0, len(members), in_row):
            row = members[start : start + in_row]
            bottom = y + 10 + max(scales.height(block) for block in row)
            if not start:
                parts += _stage_label(stage, members, bottom, total_ms)
            middle, end = bottom - LOW / 2, LEFT + PITCH * (len(row) - 1)
            parts.append(f'<path d="M{LEFT} {middle:g}H{end}" stroke="#c5cbd2" stroke-width="2"/>')
            parts += [
                _draw_block(block, LEFT + PITCH * number, bottom, scales)
                for number, block in enumerate(row)
            ]
            y = bottom + 20
    size = f'viewBox="0 0 {WIDTH} {y:g}"'
    label = 'role="img" aria-label="The network block by block"'
    return f'<svg class="drawing" {size} {label}>{"".join(parts)}</svg>'


def _stages(blocks: Sequence[BlockView]) -> dict[str, list[BlockView]]:
    """Blocks by stage; an entry operation belongs to the stage that follows it."""
    stages: dict[str, list[BlockView]] = {}
    for block in blocks:
        stages.setdefault(block.stage.removesuffix("_entry"), []).append(block)
    return stages


def _stage_label(
    stage: str, members: Sequence[BlockView], bottom: float, total_ms: float
) -> Iterator[str]:
    last = members[-1].ops[-1]
    shape = f"{last.out_channels} ch · {last.out_resolution}{TIMES}{last.out_resolution} px"
    if last.is_head:
        shape = f"{last.in_channels} → {last.out_channels} classes"
    yield _text(0, bottom - 16, _shortened(stage, 18), size=13, more=BOLD + START)
    yield _text(0, bottom - 2, shape, fill=SOFT, more=START)
    if total_ms:
        stage_ms = sum(sum(block.ms) for block in members if block.ms)
        yield _text(WIDTH, bottom - 9, f"{fixed_ms(stage_ms, total_ms)} ms", size=12, more=END)


def _draw_block(block: BlockView, x: float, bottom: float, scales: _Scales) -> str:
    op, height, ink = block.ops[0], scales.height(block), INK
    below = block.name.rpartition("_block")[2] if "_block" in block.name else ""
    lines = [text for op in block.ops for text in op_label(op)][:3]
    if block.skipped:
        lines, style = [], GHOST
    elif block.is_searched:
        colour, ink = scales.fill(block.kernel_size)
        style = f'fill="{colour}"'
    else:
        style = FIXED
        lines = ["head"] if op.is_head else [*lines, f"/{op.stride}"] if op.stride > 1 else lines
        below = {"patch_stem": "stem", "downsample": "down"}.get(op.kind, below)
    drawn = [_box(x, bottom, BOX, height, style)]
    for number, line in enumerate(lines):
        y = bottom - height / 2 + 4 + 13 * (number - (len(lines) - 1) / 2)
        drawn.append(_text(x + BOX / 2, y, line, fill=ink, more="" if number else BOLD))
    if below != "head":
        drawn.append(_text(x + BOX / 2, bottom + 13, below, size=10, fill=SOFT))
    choice = "skipped" if block.skipped else ", ".join(map(str, block.ops))
    return f"<g><title>{escape(f'{block.name}: {choice}')}</title>{''.join(drawn)}</g>"


def _legend(scales: _Scales, *, skips: bool) -> Iterator[str]:
    x, bottom = 0.0, 40.0
    for kernel_size in scales.kernels:
        colour, ink = scales.fill(kernel_size)
        yield _box(x, bottom, 36, 22, f'fill="{colour}"')
        yield _text(x + 18, 33, f"{kernel_size}{TIMES}{kernel_size}", fill=ink)
        x += 40
    if scales.kernels:
        yield _text(x + 4, 33, "kernel", fill=SOFT, more=START)
        x += 74
    for expand_ratio in scales.expansions:
        yield _box(x, bottom, 30, 0.6 * scales.height_of(expand_ratio), FIXED)
        yield _text(x + 15, 35, f"e{expand_ratio:g}")
        x += 34
    if scales.expansions:
        yield _text(x + 4, 33, "expansion (height of the box)", fill=SOFT, more=START)
        x += 204
    if skips:
        yield _box(x, bottom, 36, 22, GHOST)
        yield _text(x + 42, 33, "skipped", fill=SOFT, more=START)


def draw_gate(
    candidates: Sequence[OpSpec], probabilities: Sequence[float], chosen: int | None
) -> str:
    """The probabilities of a slot's candidates as small bars, the chosen one dark."""
    kernel = len({op.kernel_size for op in candidates}) > 1
    expansion = len({op.expand_ratio for op in candidates}) > 1
    labels = [op_label(op, kernel=kernel, expansion=expansion) for op in candidates]
    parts = []
    for number, (label, probability) in enumerate(zip(labels, probabilities, strict=True)):
        x, height = 28 * number, 24 * probability
        fill, more = (BLUE, BOLD) if number == chosen else ("#c5cbd2", "")
        tip = f"{' '.join(op_label(candidates[number]))}: {100 * probability:.0f} %"
        bar = f'x="{x + 4}" y="{26 - height:.2f}" width="20" height="{height:.2f}" fill="{fill}"'
        parts.append(f"<g><title>{escape(tip)}</title><rect {bar}/>")
        parts.append(f'<path d="M{x + 2} 26.5H{x + 26}" stroke="{PALE}"/>')
        parts += [
            _text(x + 14, 36 + 10 * line, text, size=9, more=more)
            for line, text in enumerate(label)
        ]
        parts.append("</g>")
    size = f'width="{28 * len(labels)}" height="{30 + 10 * max(map(len, labels))}"'
    return f'<svg class="gate" {size} role="img">{"".join(parts)}</svg>'


# Bars and curves, by matplotlib


def plot_blocks(blocks: Sequence[BlockView]) -> str:
    """Latency per block, stacked by part."""
    kept = [block for block in blocks if not block.skipped]
    names = [block.name.replace("_block", " · ").replace("_", " ") for block in kept]

    def draw(axes: Axes) -> None:
        bottoms = [0.0] * len(kept)
        for part, colour in dict.fromkeys(part_of(op.kind) for block in kept for op in block.ops):
            heights = [_part_ms(block, part) for block in kept]
            places = range(len(kept))
            axes.bar(places, heights, bottom=bottoms, color=colour, label=part, width=0.75)
            bottoms = [low + high for low, high in zip(bottoms, heights, strict=True)]
        labels = [_shortened(printable(name), 24) for name in names]
        axes.set_xticks(range(len(kept)), labels, rotation=90, fontsize=8)
        axes.set_xlim(-0.7, len(kept) - 0.3)
        axes.margins(y=0.08)
        axes.set_ylabel("latency [ms]")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, borderaxespad=0.2)

    return plot("blocks", "Latency per block", draw, (9.6, 3.3), pad=20)


def _part_ms(block: BlockView, part: str) -> float:
    pairs = zip(block.ops, block.ms or (), strict=True)
    return sum(ms for op, ms in pairs if part_of(op.kind)[0] == part)


PANELS: dict[str, tuple[str, dict[str, str], float]] = {
    "Loss": (
        "cross-entropy",
        {"loss": "training images", "gate_loss": "held-out half", "val_loss": "validation images"},
        1,
    ),
    "Accuracy": (
        "%",
        {
            "accuracy": "training images",
            "gate_accuracy": "held-out half",
            "val_accuracy": "validation images",
        },
        100,
    ),
    "Expected latency": ("E[latency] [ms]", {"expected_ms": "expected over the gates"}, 1),
    "Gate entropy": ("1 = undecided, 0 = decided", {"entropy": "gate entropy"}, 1),
    "Skip rate": ("% of optional blocks", {"skip_rate": "skip rate"}, 100),
    "Latency weight": ("weight in the loss", {"latency_weight": "latency weight"}, 1),
}
"""Per figure: its unit, the recorded quantities with their names, and a factor."""

FROM_ZERO = {
    "Expected latency": None,
    "Gate entropy": 1.05,
    "Skip rate": 105,
    "Latency weight": None,
}
"""Figures whose axis starts at zero, with its end, or None if that depends on the data."""


@dataclass(frozen=True)
class Level:
    """A horizontal line that a curve is compared with.

    Args:
        width: half the width of the band around it, relative to its value.
    """

    value: float
    label: str
    width: float = 0.0


def plot_curves(
    epochs: Sequence[Epoch], budget_ms: float | None, chance: float | None = None
) -> list[str]:
    """One small figure per recorded quantity.

    Args:
        chance: accuracy of always naming the most frequent class, from 0 to 1; None if unknown.
    """
    guessing = None if chance is None else Level(100 * chance, f"chance, {100 * chance:.1f} %")
    figures = []
    for title, (unit, fields, factor) in PANELS.items():
        lines = {label: values_of(epochs, field, factor) for field, label in fields.items()}
        lines = {label: points for label, points in lines.items() if points}
        if lines:
            level = guessing if title == "Accuracy" else None
            if title == "Expected latency" and budget_ms is not None:
                level = Level(budget_ms, "budget ± 5 %", width=0.05)
            figures.append(_curve(title, unit, lines, epochs, level))
    return figures


def values_of(epochs: Sequence[Epoch], field: str, factor: float) -> list[tuple[int, float]]:
    """The finite values of a quantity, times a factor, over the epochs of all phases."""
    values = [(x, getattr(epoch, field)) for x, epoch in enumerate(epochs, start=1)]
    recorded = [(x, factor * value) for x, value in values if value is not None]
    return [(x, value) for x, value in recorded if math.isfinite(value)]


def _curve(
    title: str,
    unit: str,
    lines: Mapping[str, Sequence[tuple[int, float]]],
    epochs: Sequence[Epoch],
    level: Level | None,
) -> str:
    def draw(axes: Axes) -> None:
        if level is not None and level.width:
            ends = (level.value * (1 - level.width), level.value * (1 + level.width))
            axes.axhspan(*ends, color=RED, alpha=0.15, lw=0)
        if level is not None:
            style = "-" if level.width else "--"
            axes.axhline(level.value, color=RED, lw=1, ls=style, label=level.label)
        for (label, points), colour in zip(lines.items(), (BLUE, ORANGE, GREEN), strict=False):
            xs, ys = zip(*points, strict=True)
            marker = "o" if len(points) < 40 else ""
            axes.plot(xs, ys, color=colour, marker=marker, ms=3, lw=1.4, label=label)
        all_xs = [x for points in lines.values() for x, _ in points]
        axes.set_xlim(min(all_xs) - 0.5, max(all_xs) + 0.5)
        if title in FROM_ZERO:
            axes.set_ylim(bottom=0, top=FROM_ZERO[title])
        _mark_phases(axes, epochs)
        axes.set(xlabel="epoch", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        if level is not None and level.width:
            axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
            axes.legend(loc="upper right", ncols=2)
        elif level is not None or len(lines) > 1:
            axes.legend(loc="best")

    return plot(title.lower().replace(" ", "-"), title, draw, (4.2, 2.7), pad=16)


def _mark_phases(axes: Axes, epochs: Sequence[Epoch]) -> None:
    """Shade the phases, and label those that are wide enough."""
    left, right = axes.get_xlim()
    for phase, (name, colour) in PHASES.items():
        xs = [x for x, epoch in enumerate(epochs, start=1) if epoch.phase == phase]
        if not xs or xs[0] > right or xs[-1] < left:
            continue
        start, end = max(xs[0] - 0.5, left), min(xs[-1] + 0.5, right)
        axes.axvspan(start, end, color=colour, lw=0, zorder=-1)
        if (end - start) / (right - left) > 0.14:
            place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            axes.text((start + end) / 2, 1.01, name, size=8, **place)  # type: ignore[arg-type]


def plot_front(
    device: str,
    front: Sequence[tuple[float, float]],
    judged: Sequence[tuple[float, float]],
    chosen: tuple[float, float] | None,
    budget_ms: float | None,
) -> str:
    """Accuracy over predicted latency on a device: the front, and all networks that were judged.

    Args:
        front, judged, chosen: pairs of latency in milliseconds and accuracy from 0 to 1.
    """

    def draw(axes: Axes) -> None:
        if budget_ms is not None:
            axes.axvline(budget_ms, color=RED, lw=1, label="budget of this run")
        axes.plot(*_in_percent(judged), color=GREY, marker="o", ms=3, ls="none", label="judged")
        axes.plot(*_in_percent(front), color=BLUE, marker="o", ms=4, lw=1, label="front")
        if chosen is not None:
            star = {"marker": "*", "ms": 15, "ls": "none", "mec": "white"}
            axes.plot(*_in_percent([chosen]), color=ORANGE, label="the chosen network", **star)  # type: ignore[arg-type]
        axes.set_xlabel(f"predicted latency on {printable(device)} [ms]")
        axes.set_ylabel("accuracy with the supernet's weights [%]")
        axes.grid(color="#e4e7eb", lw=0.6)
        axes.legend(loc="best")

    return plot(f"front-{device}", f"Accuracy against latency on {device}", draw, (9.6, 3.6))


def _in_percent(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Latencies, and accuracies in per cent."""
    return [ms for ms, _ in points], [100 * accuracy for _, accuracy in points]
