"""What a measured table costs: building it, and predicting with it."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from quadranas.commands.build_lut import build_lut
from quadranas.files import source_commit
from quadranas.measurement.plan import Plan
from quadranas.space.space_file import load_space


def measure_table(space_name: str, plan: Plan) -> dict[str, float]:
    """Building this machine's table against its entries alone; predicting against a plain sum."""
    space = load_space(space_name)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = Path(folder) / "host.json"
        table = build_lut(
            space,
            device="host",
            output=path,
            rounds=plan.num_rounds,
            repeats=plan.repeats,
        ).table()
        seconds = time.perf_counter() - start
    entries_s = sum(entry.minimum_ms or 0.0 for entry in table.entries) / 1e3
    network = space.extreme(table.op_ms, largest=True)
    latencies, ops = table.latencies_ms, list(network.ops())
    predict = rate(lambda: table.predict_ms(network))
    by_hand = rate(lambda: sum(latencies[op] for op in ops))
    return {
        "build_s": seconds,
        "entries_s": entries_s,
        "overhead": seconds / entries_s,
        "predictions_per_s": predict,
        "plain_sums_per_s": by_hand,
        "prediction_ratio": predict / by_hand,
    }


def rate(call: Callable[[], Any], number: int = 200) -> float:
    """Calls per second."""
    call()
    start = time.perf_counter()
    for _ in range(number):
        call()
    return number / (time.perf_counter() - start)


def main() -> None:
    """Measure, print, and keep the figures in `--output`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="the toy space, few rounds")
    parser.add_argument("--output", type=Path, help="folder to keep the figures in")
    args = parser.parse_args()
    name, plan = ("toy", Plan(2, 2)) if args.smoke else ("quadranet-mobile", Plan())
    results: dict[str, Any] = measure_table(name, plan)
    print(
        f"table of this machine for {name}: {results['build_s']:.0f} s, {results['overhead']:.0f} "
        f"times the sum of its entries; {results['predictions_per_s']:.0f} predictions/s, "
        f"{results['prediction_ratio']:.2f} times a plain sum over the same dictionary"
    )
    if args.output:
        made = {"space": name, "commit": source_commit()}
        made["date"] = datetime.now(UTC).strftime("%Y-%m-%d")
        (args.output / "tables.json").write_text(json.dumps(made | results, indent=2) + "\n")


if __name__ == "__main__":
    main()
