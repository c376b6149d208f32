"""The default search, from data to a tested and exported network; see README.md."""

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command does

import torch

from quadranas.commands.export import export
from quadranas.commands.search import search
from quadranas.files import source_commit
from quadranas.reporter import Reporter
from quadranas.runs.config import SearchConfig

HERE = Path(__file__).parent
KEPT = ("config.yaml", "architecture.json")


def main() -> None:
    """Search, export, keep what is small."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="the toy space, nothing kept")
    parser.add_argument("--run", type=Path, help="keep the run folder here")
    args = parser.parse_args()
    config = SearchConfig(device="vpu", budget="30ms")
    if args.smoke:
        config = SearchConfig(device="vpu", budget="1ms", space="toy")
    run = args.run or Path(tempfile.mkdtemp()) / "run"
    started = time.monotonic()
    with Reporter() as reporter:
        result = search(config, output=run, reporter=reporter)
    minutes = (time.monotonic() - started) / 60
    with Reporter() as reporter:
        exported = export(run, reporter=reporter)
    last = [
        line
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if line["phase"] == "search"
    ][-1]
    results = {
        "device": result.device,
        "budget_ms": result.budget_ms,
        "predicted_ms": result.predicted_ms,
        "table": result.table.summary,
        "expected_ms": last["expected_ms"],
        "params": result.params,
        "macs": result.macs,
        "accuracy": result.accuracy,
        "resolution": result.resolution,
        "accuracy_as_trained": result.accuracy_as_trained,
        "trained_resolution": result.trained_resolution,
        "onnx_accuracy": exported.accuracy,
        "onnx_max_abs_error": exported.max_abs_error,
        "minutes": round(minutes, 1),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    print(json.dumps(results, indent=2))
    if args.smoke:
        return
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for name in KEPT:
        shutil.copy(run / name, HERE / name)


if __name__ == "__main__":
    main()
