"""What each lowering pass is worth in each runtime; see README.md."""

import argparse
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from quadranas.backends.interface import FileBackend
from quadranas.errors import MissingExtraError, QuadranasError
from quadranas.files import source_commit
from quadranas.latency.device import load_device
from quadranas.latency.host import cpu_name
from quadranas.latency.journal import Journal
from quadranas.measurement.bench import open_device
from quadranas.measurement.plan import Plan
from quadranas.measurement.probes import REFERENCE_OP, chain_probe
from quadranas.measurement.summary import REFERENCE
from quadranas.measurement.timing import time_programs
from quadranas.network.skeleton import build_subnet
from quadranas.reporter import Reporter
from quadranas.space.architecture import load_architecture
from quadranas.space.space_file import load_space

HERE = Path(__file__).parent
NETWORK = HERE.parent / "default_search" / "architecture.json"
RUNTIMES = ("onnxruntime", "openvino", "torch", "executorch")
VARIANTS = {
    "plain": (),
    "fold_layer_scale": ("fold_layer_scale",),
    "decompose_layer_norm": ("decompose_layer_norm",),
    "linear_as_convolution": ("linear_as_convolution",),
    "convolution, then norm": ("linear_as_convolution", "decompose_layer_norm"),
    "join_branches": ("join_branches",),
}


def time_variants(runtime: str, smoke: bool, reporter: Reporter) -> dict[str, Any]:
    """Latency of every variant relative to the plain one, timed in the same shuffled rounds."""
    toy = load_space("toy").extreme(lambda spec: spec.kernel_size, largest=True)
    architecture = toy if smoke else load_architecture(NETWORK)
    network = build_subnet(architecture).eval()
    shape = (1, 3, architecture.resolution, architecture.resolution)
    with open_device(load_device("host").configured(runtime=runtime)) as backend:
        assert isinstance(backend, FileBackend)
        used = backend.lowering
        programs = {}
        for name, passes in VARIANTS.items():
            backend.lowering = ("fold_batch_norm", *passes)
            programs[name] = backend.compile(network, shape)
        backend.lowering = used
        size = REFERENCE_OP.resolution
        programs[REFERENCE] = backend.compile(
            chain_probe([REFERENCE_OP]), (1, REFERENCE_OP.in_channels, size, size)
        )
        plan = Plan(num_rounds=3 if smoke else 40)
        with Journal(None, {}) as journal:
            timings = time_programs(programs, journal, reporter, plan)
        version = backend.provenance().runtime
    plain_ms = timings.programs["plain"].latency_ms
    ratios = {name: timings.programs[name].latency_ms / plain_ms for name in VARIANTS}
    return {"version": version, "used": used, "plain_ms": plain_ms, "ratios": ratios}


def main() -> None:
    """Time all variants in all runtimes that are installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="the toy space, nothing kept")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with Reporter() as reporter:
        for runtime in RUNTIMES:
            try:
                results[runtime] = time_variants(runtime, args.smoke, reporter)
            except MissingExtraError as error:
                reporter.warning(error.message)
            except QuadranasError as error:
                results[runtime] = {"error": error.message}
    content = {
        "runtimes": results,
        "hardware": f"{cpu_name()}, 1 thread",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": source_commit(),
    }
    print(json.dumps(content, indent=2))
    if not args.smoke:
        (HERE / "results.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
