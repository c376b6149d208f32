"""Two small spaces with latencies that were made up, and supernets of them in training."""

from typing import Any

import torch
from torch import nn

from quadranas.data.batch import Batch
from quadranas.latency.table import LatencyTable, TableEntry
from quadranas.latency.table_files import find_table
from quadranas.runs.config import GateConfig
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import SpaceFile, build_space, load_space
from quadranas.supernet.budget_controller import BudgetController
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gate_training import GateTrainer
from quadranas.supernet.supernet import build_supernet

QUADRA: dict[str, Any] = {
    "name": "small-quadra",
    "resolution": 16,
    "num_classes": 4,
    "widths": [6, 8],
    "stages": [
        {
            "entry": {"kind": "patch_stem", "kernel_size": 4, "stride": 4},
            "depth": [1, 2],
            "slots": [
                {"kind": "quadratic_depthwise", "kernel_size": [1, 3, 5]},
                {"kind": "feed_forward", "expand_ratio": [1, 2, 3]},
            ],
        },
        {
            "entry": {"kind": "downsample", "kernel_size": 2, "stride": 2},
            "depth": [0, 1],
            "slots": [{"kind": "feed_forward", "expand_ratio": [1, 2, 3, 4]}],
        },
    ],
    "head": "norm_head",
}
MBCONV: dict[str, Any] = {
    "name": "small-mbconv",
    "resolution": 16,
    "num_classes": 4,
    "widths": [6, 6, 8],
    "stages": [
        {"stride": 2, "depth": [1, 1], "slots": [{"kind": "conv_bn", "kernel_size": [3]}]},
        *(
            {
                "stride": 2,
                "depth": [1, 2],
                "slots": [{"kind": "mbconv", "kernel_size": [3, 5], "expand_ratio": [2, 3]}],
            }
            for _ in range(2)
        ),
    ],
    "head": "linear_head",
}
SPACES = {
    content["name"]: build_space(SpaceFile.model_validate(content)) for content in (QUADRA, MBCONV)
}
BUDGET_MS = 0.7
"""Within the reach of both spaces."""


def table_for(space: SearchSpace, factor: float = 1.0) -> LatencyTable:
    """Larger kernels and expansions take longer; 0.43 to 1.58 ms for a network."""
    header = find_table(load_space("toy"), "vpu").header
    entries = tuple(
        TableEntry(
            op=spec, latency_ms=factor * (0.05 + 0.02 * spec.kernel_size * spec.expand_ratio)
        )
        for spec in space.specs()
    )
    return LatencyTable(header=header, entries=entries)


def batch_for(space: SearchSpace, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 3, space.resolution, space.resolution, generator=generator)
    labels = torch.randint(space.num_classes, (8,), generator=generator)
    return Batch(images, nn.functional.one_hot(labels, space.num_classes).float())


def trainer_for(
    space: SearchSpace, *, mode: str = "two_path", budget_ms: float = BUDGET_MS, seed: int = 0
) -> GateTrainer:
    supernet = build_supernet(space, seed=seed).train()
    expected = ExpectedLatency(space, supernet.gates, table_for(space))
    config = GateConfig.model_validate({"mode": mode, "learning_rate": 0.05})
    return GateTrainer(supernet, expected, BudgetController(budget_ms), config)
