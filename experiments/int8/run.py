"""A trained network in 8 bits: accuracy, size and latency before and after; see README.md."""

import argparse
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from comparison import compare, trained

from quadranas.backends.interface import QuantizingBackend
from quadranas.backends.registry import open_backend
from quadranas.files import source_commit
from quadranas.latency.device import load_device
from quadranas.latency.host import pinned
from quadranas.latency.journal import Journal
from quadranas.latency.runtimes import RUNTIMES
from quadranas.measurement.plan import Plan
from quadranas.measurement.probes import REFERENCE_OP, chain_probe
from quadranas.measurement.summary import REFERENCE, STATISTIC
from quadranas.measurement.timing import time_programs
from quadranas.reporter import Reporter
from quadranas.runs.config import DataConfig
from quadranas.runs.stored_network import open_test_images

HERE = Path(__file__).parent
QUANTISING = ("onnxruntime", "openvino")
"""The runtimes that write int8 files."""


def main() -> None:
    """Train if there is no network yet, quantise, measure everything together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="the toy space, nothing kept")
    parser.add_argument("--run", type=Path, help="a finished run, or where to train")
    parser.add_argument("--data", help="folder or zip of images by class; digits if not given")
    parser.add_argument("--val", help="folder or zip with the test images")
    args = parser.parse_args()
    data = {"data": args.data, "val": args.val} if args.data else {}
    folder = Path(tempfile.mkdtemp())
    run, plan = args.run or folder / "run", Plan(*((3, 2) if args.smoke else (40, 20)))
    with Reporter() as reporter:
        stored = trained(run, data, args.smoke, reporter)
        images = open_test_images(stored, DataConfig())
        chosen = torch.linspace(0, len(images.dataset.train) - 1, 128).long()
        calibration = images.augmenter.plain(images.dataset.train.batch(chosen)).contiguous()
        sizes = (images.dataset.resolution, 64 if args.smoke else stored.architecture.resolution)
        rows, programs, header = {}, {}, {}
        for runtime in QUANTISING:
            suffix = RUNTIMES[runtime].own_files.suffix
            device = load_device("host").model_copy(update={"runtime": runtime})
            backend = open_backend(device, folder)
            assert isinstance(backend, QuantizingBackend)
            (folder / runtime).mkdir()
            rows[runtime], found = compare(
                *(backend, suffix, stored, images, calibration, sizes, folder / runtime, reporter)
            )
            programs |= {f"{runtime} {name}": program for name, program in found.items()}
            programs.setdefault(
                REFERENCE, backend.compile(chain_probe([REFERENCE_OP]), (1, 32, 56, 56))
            )
            header[runtime] = backend.provenance().runtime
        with pinned(device.threads):
            timings = time_programs(programs, Journal(None, {}), reporter, plan)
    for name, timing in timings.programs.items():
        runtime, precision, size = name.split()
        latency = rows[runtime].setdefault("latency_ms", {}).setdefault(size, {})
        latency[precision] = round(timing.latency_ms, 4)
    (ranges, _) = [row.pop("ranges") for row in rows.values()]  # the same for both
    print(json.dumps(rows, indent=2))
    if args.smoke:
        return
    results = {
        "network": stored.architecture.name,
        "params": sum(p.numel() for p in stored.network().parameters()),
        "num_test_images": len(images.dataset.test),
        "statistic": STATISTIC,
        "noise": round(timings.noise, 4),
        "num_disturbed": timings.num_disturbed,
        "threads": device.threads,
        "hardware": backend.provenance().hardware,
        "runtimes": header,
        "versions": dict(backend.provenance().versions),
        "rows": rows,
        "ranges": ranges,
        "commit": source_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
