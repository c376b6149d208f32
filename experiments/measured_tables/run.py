"""Build and validate this machine's tables on both CPU runtimes; see README.md."""

import argparse
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from quadranas.commands.build_lut import build_lut
from quadranas.commands.validate_lut import validate_lut
from quadranas.files import source_commit
from quadranas.latency.table_files import load_table
from quadranas.measurement.plan import Plan
from quadranas.reporter import Reporter

HERE = Path(__file__).parent
SPACES = ("quadranet-mobile", "mbconv-mobile")
RUNTIMES = ("onnxruntime", "openvino")


def measure(
    name: str, runtime: str, path: Path, networks: int, plan: Plan, reporter: Reporter
) -> dict[str, Any]:
    """A table, and how far its predictions are from fresh networks."""
    command = f"python experiments/measured_tables/run.py ({name}, {runtime})"
    path.unlink(missing_ok=True)
    build_lut(
        name,
        device="host",
        backend=runtime,
        output=path,
        rounds=plan.num_rounds,
        repeats=plan.repeats,
        reporter=reporter,
        command=command,
    )
    result = validate_lut(
        name,
        device="host",
        table=path,
        networks=networks,
        rounds=plan.num_rounds,
        repeats=plan.repeats,
        reporter=reporter,
        command=command,
    )
    header = load_table(path).header
    assert header.measurement is not None
    assert header.calibration is not None
    return result.model_dump(exclude={"summary", "plot", "table"}) | {
        "space": name,
        "runtime": header.runtime,
        "table": path.name,
        "scale": header.scale,
        "residual": header.calibration.residual,
        "noise": header.measurement.noise,
        "num_disturbed": header.measurement.num_disturbed,
        "hardware": header.measurement.hardware,
    }


def main() -> None:
    """Measure each pair, print a line each, keep tables, plots and results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="toy space, few rounds, not kept")
    args = parser.parse_args()
    spaces, networks, plan, folder = SPACES, 30, Plan(), HERE
    if args.smoke:
        spaces, networks, plan = ("toy",), 4, Plan(num_rounds=2, repeats=2)
        folder = Path(tempfile.mkdtemp())
    rows = []
    with Reporter() as reporter:
        for name in spaces:
            for runtime in RUNTIMES:
                path = folder / f"{name}-{runtime}.json"
                rows.append(measure(name, runtime, path, networks, plan, reporter))
                print(json.dumps(rows[-1]))
    if not args.smoke:
        made = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "commit": source_commit()}
        content = json.dumps(made | {"tables": rows}, indent=1)
        (HERE / "results.json").write_text(content + "\n")


if __name__ == "__main__":
    main()
