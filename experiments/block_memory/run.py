"""What a block of each kind keeps for its backward pass, and what it takes. See README.md."""

import argparse
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from blocks import PAPER_MB, build_blocks
from torch import Tensor, nn

from quadranas.files import source_commit
from quadranas.latency.host import cpu_name
from quadranas.memory import measure_memory, profile_memory

HERE = Path(__file__).parent
WIDTHS = (64, 128)


def best_ms(blocks: dict[str, nn.Module], x: Tensor, rounds: int) -> dict[str, float]:
    """Shortest forward and backward pass of each block, in turn, the first round discarded."""
    taken: dict[str, list[float]] = {name: [] for name in blocks}
    for _ in range(rounds + 1):
        for name, block in blocks.items():
            start = time.perf_counter()
            block(x).backward(x.detach())
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: min(times[1:]) for name, times in taken.items()}


def measure(channels: int, resolution: int, batch: int, rounds: int) -> dict[str, Any]:
    """One row per block."""
    blocks: dict[str, nn.Module] = dict(build_blocks(channels, resolution))
    shape = (batch, channels, resolution, resolution)
    images = torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()
    times = best_ms(blocks, images, rounds)
    rows = {}
    for name, block in blocks.items():
        found = profile_memory(block, shape, differentiate_input=True)
        rows[name] = {
            "params": found.params,
            "macs": found.macs,
            "saved_bytes": found.saved_bytes,
            "predicted_peak_bytes": found.training.num_bytes,
            "step_ms": times[name],
            "paper_mb": PAPER_MB[name][WIDTHS.index(channels)],
        }
        if torch.cuda.is_available():
            measured = measure_memory(block, shape, device="cuda")
            rows[name]["cuda_peak_bytes"] = measured.training_peak_bytes
    return rows


def main() -> None:
    """Measure both widths, print the table, keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="batch 1, 14 pixels")
    parser.add_argument("--output", type=Path, help="folder to keep the figures in")
    args = parser.parse_args()
    resolution, batch, rounds = (14, 1, 1) if args.smoke else (56, args.batch, args.rounds)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    widths = {str(width): measure(width, resolution, batch, rounds) for width in WIDTHS}
    ratios = {
        w: rows["quadra"]["step_ms"] / rows["quadra_direct"]["step_ms"]
        for w, rows in widths.items()
    }
    for width, rows in widths.items():
        base, paper = rows["depthwise"]["saved_bytes"], rows["depthwise"]["paper_mb"]
        print(f"{width} channels: MiB kept, over the depthwise block, the paper's ratio, ms")
        for name, row in rows.items():
            print(f"  {name:<14}{row['saved_bytes'] / 2**20:8.2f}", end="")
            print(f"{row['saved_bytes'] / base:8.3f}{row['paper_mb'] / paper:8.3f}", end="")
            print(f"{row['step_ms']:9.1f}")
    results: dict[str, Any] = {
        "setting": f"batch {batch}, {resolution} pixels, float32, one thread",
        "hardware": cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": source_commit(),
        "time_ratio": ratios,
        "channels": widths,
    }
    print("memory-efficient over direct, time:", ratios)
    folder = args.output or (None if args.smoke else HERE)
    if folder:
        name = "results.json" if folder == HERE else "block_memory.json"
        (folder / name).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
