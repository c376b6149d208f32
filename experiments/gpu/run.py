"""Everything that needs a GPU, in one command: `make gpu`. See README.md.

Every part runs in a process and a time of its own, and its result is kept as soon as
it ends, so that a part that fails or takes too long costs only itself.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quadranas.files import source_commit

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent

SECONDS = {"steps": 80, "networks": 110, "kernels": 90, "memory": 30, "table": 120, "search": 90}
"""Time limits of the parts; together with the start of PyTorch in each less than nine minutes."""


def commands_of(part: str, output: Path, data: Path | None, *, smoke: bool) -> list[list[str]]:
    """The command lines of a part, which write their results into a folder."""
    small = ["--smoke"] if smoke else []
    python = [sys.executable]
    quadranas = [*python, "-m", "quadranas"]
    device, table = str(output / "device.yaml"), str(output / "table.json")
    space = "toy" if smoke else "quadranet-mobile"
    own = [*python, str(HERE / "parts.py")]
    if part in ("steps", "networks"):
        return [[*own, part, "--output", str(output), *small]]
    if part == "kernels":
        if smoke:  # the kernels need a GPU; tests run them in Triton's interpreter
            return []
        kernels = str(EXPERIMENTS / "benchmark" / "kernels.py")
        return [[*python, kernels, "--output", str(output)]]
    if part == "memory":
        blocks = str(EXPERIMENTS / "block_memory" / "run.py")
        return [[*python, blocks, "--output", str(output), *small]]
    if part == "table":
        built = [*quadranas, "build-lut", "--device", device, "--space", space, "--output", table]
        described = [*own, "device", "--output", str(output), *small]
        if smoke:  # whatever else the processor does, a table of the analytic model can be built
            return [described, [*built, "--backend", "analytic"]]
        validated = [*quadranas, "validate-lut", "--device", device, "--space", space]
        return [described, built, [*validated, "--table", table, "--networks", "20", "--json"]]
    budget = ["--budget", "1s" if smoke else "2ms"]
    images = []
    if data is not None:
        images = ["--data", str(data / "cifar10-train.zip")]
        images += ["--val", str(data / "cifar10-test.zip")]
    config = str(HERE / "smoke.yaml" if smoke else EXPERIMENTS / "cifar10" / "config.yaml")
    return [
        [
            *(*quadranas, "search", "--device", device, "--space", space, "--table", table),
            *(*budget, *images, "--config", config, "--accelerator", "auto"),
            *("--precision", "bf16", "--output", str(output / "search"), "--json"),
        ]
    ]


def run_part(
    part: str, commands: Sequence[Sequence[str]], output: Path, seconds: float
) -> dict[str, Any]:
    """Run the commands of a part; returns how it ended and how long it took."""
    start = time.monotonic()
    ended = "done" if commands else "left out"
    with (output / f"{part}.log").open("w", encoding="utf-8") as log:
        for command in commands:
            left = seconds - (time.monotonic() - start)
            try:
                code = subprocess.run(
                    command, stdout=log, stderr=subprocess.STDOUT, timeout=left, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                ended = f"stopped after {seconds} s"
                break
            if code:
                ended = f"exit code {code}"
                break
    return {"ended": ended, "seconds": round(time.monotonic() - start, 1)}


def main() -> None:
    """Run the parts in order; keep how each ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10's zips; default: digits")
    parser.add_argument("--only", nargs="*", choices=SECONDS, help="the parts to run")
    parser.add_argument("--smoke", action="store_true", help="small, on the processor too")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    summary: dict[str, Any] = {
        "commit": source_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "smoke": args.smoke,
        "parts": {},
    }
    failed = []
    for part in args.only or SECONDS:
        commands = commands_of(part, args.output, args.data, smoke=args.smoke)
        summary["parts"][part] = run_part(part, commands, args.output, SECONDS[part])
        (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        ended = summary["parts"][part]
        print(f"{part:<10}{ended['ended']}, {ended['seconds']} s", flush=True)
        if ended["ended"] not in ("done", "left out"):
            failed.append(part)
    if failed:
        sys.exit(f"not done: {', '.join(failed)}; see the logs in {args.output}")


if __name__ == "__main__":
    main()
