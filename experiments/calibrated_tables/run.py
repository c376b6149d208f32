"""Carry tables over to other devices with ten measured networks; see README.md."""

import argparse
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from quadranas.commands.validate_lut import fresh_networks
from quadranas.files import source_commit
from quadranas.latency.calibration import fit_scale
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import find_table, load_table
from quadranas.latency.transfer import transferred
from quadranas.measurement.lut_entries import calibration_networks
from quadranas.space.architecture import Architecture
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space

HERE = Path(__file__).parent
TABLES = HERE.parent / "measured_tables"
SPACES = ("quadranet-mobile", "mbconv-mobile")
RUNTIMES = ("onnxruntime", "openvino")
IN_8_BITS = HERE.parent / "any_device"
PRECISIONS = {"litert": "litert_int8", "ssh": "onnxruntime_int8"}
"""Tables there of the same runtime in fp32 and in int8."""

NUM_NETWORKS = 10
DRAWS = 20

Measured = list[tuple[Architecture, float]]


def measured_networks(opened: SearchSpace, table: LatencyTable) -> Measured:
    """The networks of its space that a measured table was calibrated and validated with."""
    header = table.header
    assert header.calibration is not None
    assert header.validation is not None
    known = (*header.calibration.networks, *header.validation.networks)
    fresh = fresh_networks(opened, len(header.validation.networks), 0)
    networks = {network.name: network for network in (*calibration_networks(opened), *fresh)}
    return [(networks[latency.name], latency.measured_ms) for latency in known]


def errors(
    source: LatencyTable, chosen: Measured, others: Measured, null_ms: float
) -> dict[str, float]:
    """Mean absolute error on the others: untouched, by one scale, and by a factor per kind."""
    measured = np.array([ms for _, ms in others])
    sums = np.array([source.predict_ms(network) - source.header.null_ms for network, _ in others])
    one = fit_scale(
        [source.predict_ms(network) - source.header.null_ms for network, _ in chosen],
        [ms for _, ms in chosen],
        null_ms,
    )
    specs = dict.fromkeys(op for network, _ in others for op in network.ops())
    found = transferred(source, tuple(specs), chosen, null_ms)
    added = {entry.op: entry.latency_ms - null_ms for entry in found.entries}
    by_kind = np.array([sum(added[op] for op in network.ops()) for network, _ in others])

    def mape(predicted: np.ndarray) -> float:
        return float(np.abs(predicted / measured - 1).mean())

    return {
        "untouched": mape(sums + source.header.null_ms),
        "one_scale": mape(one * sums + null_ms),
        "by_kind": mape(by_kind + null_ms),
        "stated": found.mape,
    }


def from_other_runtimes(space: str, runtime: str, draws: int) -> list[dict[str, Any]]:
    """Every other table as the source for one runtime of this machine."""
    sources = {name: load_table(TABLES / f"{space}-{name}.json") for name in RUNTIMES}
    target = sources.pop(runtime)
    sources |= {name: find_table(load_space(space), name) for name in ("cpu", "vpu")}
    return compare(load_space(space), runtime, target, sources, draws)


def from_fp32(draws: int) -> list[dict[str, Any]]:
    """The fp32 table of a runtime as the source for its int8, where that was measured."""
    space, rows = load_space(IN_8_BITS / "space.yaml"), []
    for source, target in PRECISIONS.items():
        paths = [IN_8_BITS / f"{name}.json" for name in (source, target)]
        if all(path.is_file() for path in paths):
            tables = [load_table(path) for path in paths]
            rows += compare(space, target, tables[1], {source: tables[0]}, draws)
    return rows


def compare(
    space: SearchSpace,
    name_of_target: str,
    target: LatencyTable,
    sources: Mapping[str, LatencyTable],
    draws: int,
) -> list[dict[str, Any]]:
    """The errors of tables that are carried over to a target, by the name of the source."""
    networks = measured_networks(space, target)
    rows = []
    for name, source in sources.items():
        found = []
        for seed in range(draws):
            shuffled = Random(seed).sample(networks, len(networks))
            parts = shuffled[:NUM_NETWORKS], shuffled[NUM_NETWORKS:]
            found.append(errors(source, *parts, target.header.null_ms))
        mean = {key: float(np.mean([row[key] for row in found])) for key in found[0]}
        worst = max(row["by_kind"] for row in found)
        named = {"space": space.name, "source": name, "target": name_of_target}
        rows.append(named | mean | {"worst": worst})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Compare, and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one space, two draws, nothing kept")
    smoke = parser.parse_args().smoke
    spaces, draws = (SPACES[:1], 2) if smoke else (SPACES, DRAWS)
    rows = [row for s in spaces for r in RUNTIMES for row in from_other_runtimes(s, r, draws)]
    rows += from_fp32(draws)
    if smoke:
        return
    result = {
        "networks": NUM_NETWORKS,
        "draws": DRAWS,
        "commit": source_commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "rows": rows,
    }
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
