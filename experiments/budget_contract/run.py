"""Is the budget kept when the decoded network is measured? See README.md."""

import argparse
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from quadranas.commands.build_lut import build_lut
from quadranas.files import source_commit
from quadranas.latency.contract import Contract
from quadranas.latency.device import load_device
from quadranas.latency.goal import Goal
from quadranas.latency.table_files import PricedTable, load_table
from quadranas.measurement.bench import network_job, open_bench, warn_of_drift, with_runtime
from quadranas.measurement.plan import Plan
from quadranas.reporter import Reporter
from quadranas.space.cost import count_macs
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space
from quadranas.strategies.derivation import decoding_limits
from quadranas.strategies.exact import decode
from quadranas.strategies.limits import reachable_ms
from quadranas.strategies.scores import BlockScores, GateScores

HERE = Path(__file__).parent


def gates(space: SearchSpace, seed: int) -> GateScores:
    """Scores as of trained gates: larger candidates are better, with noise of the same size."""
    random = np.random.default_rng(seed)

    def scores(costs: list[int]) -> tuple[float, ...]:
        logits = np.log(costs) + random.normal(size=len(costs))
        return tuple((logits - np.log(np.exp(logits).sum())).tolist())

    blocks = {}
    for block in space.blocks:
        if not block.is_fixed:
            slots = tuple(scores([count_macs(c) for c in s.candidates]) for s in block.slots)
            keep, skip = scores([2, 1]) if block.optional else (0.0, None)
            blocks[block.name] = BlockScores(keep=keep, skip=skip, slots=slots)
    return GateScores(space=space.name, space_digest=space.digest, blocks=blocks)


def main() -> None:
    """Decode at budgets over the reachable range, measure every network, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="quadranet-mobile")
    parser.add_argument("--table", type=Path, help="of this machine; measured if not given")
    parser.add_argument("--decodings", type=int, default=40)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--smoke", action="store_true", help="toy space, 4 decodings, not kept")
    args = parser.parse_args()
    name, number, plan = args.space, args.decodings, Plan()
    if args.smoke:
        name, number, plan = "toy", 4, Plan(num_rounds=2, repeats=2)
    space, device = load_space(name), load_device("host")
    with Reporter() as reporter:
        path = args.table or Path(tempfile.mkdtemp()) / "host.json"
        if not args.table:
            build_lut(
                space,
                device=device,
                reporter=reporter,
                output=path,
                rounds=plan.num_rounds,
                repeats=plan.repeats,
            )
        table = load_table(path)
        low, high = reachable_ms(space, table)
        factor = Contract(budget_ms=1.0, confidence=args.confidence).decoding_ms(table)
        budgets = [float(b) for b in np.linspace(low / factor, high, number + 1)[:-1]]
        jobs, rows = {}, []
        for index, budget_ms in enumerate(budgets):
            contract = Contract(budget_ms=budget_ms, confidence=args.confidence)
            limits = decoding_limits([Goal(device, PricedTable(path, table), contract)])
            decoded = decode(space, gates(space, index), table, limits)
            network = space.architecture(decoded.choices, f"network {index}")
            jobs[network.name] = network_job(network)
            rows.append({"budget_ms": budget_ms, "predicted_ms": decoded.latency_ms})
        with open_bench(with_runtime(device, table.header)) as bench:
            timings = bench.time(jobs, reporter, plan)
            warn_of_drift(table.header, timings, reporter)
    for row, key in zip(rows, jobs, strict=True):
        row["measured_ms"] = timings.programs[key].latency_ms
    uses = np.array([row["measured_ms"] / row["budget_ms"] for row in rows])
    results: dict[str, Any] = {
        "table": table.header.summary(),
        "reference_now_over_then": timings.reference_ms / table.header.measurement.reference_ms,  # type: ignore[union-attr]
        "confidence": args.confidence,
        "budget_factor": factor,
        "decodings": number,
        "share_within_budget": float((uses <= 1).mean()),
        "mean_use": float(uses.mean()),
        "largest_use": float(uses.max()),
        "hardware": bench.provenance.hardware,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": source_commit(),
    }
    print(json.dumps(results, indent=2))
    if not args.smoke:
        content = json.dumps(results | {"networks": rows}, indent=1)
        (HERE / "results.json").write_text(content + "\n")


if __name__ == "__main__":
    main()
