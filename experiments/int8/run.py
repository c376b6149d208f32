"""A trained network in 8 bits: accuracy, size and latency before and after; see README.md."""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.nn.functional import interpolate

from quadranas.architecture import load_architecture
from quadranas.backends.interface import Conversion, Program, QuantizingBackend
from quadranas.backends.registry import open_backend
from quadranas.files import source_commit
from quadranas.latency.device import load_device
from quadranas.latency.host import pinned
from quadranas.latency.journal import Journal
from quadranas.probes import REFERENCE_OP, chain_probe
from quadranas.quantization import quantized
from quadranas.reporter import Reporter
from quadranas.space import load_space
from quadranas.timing import REFERENCE, STATISTIC, Plan, time_programs
from quadranas.train import train
from quadranas.trained import HeldOutImages, Subject, open_subject, open_test_images

HERE = Path(__file__).parent
SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml"}
BATCH = 100


def evaluator(backend: QuantizingBackend, images: HeldOutImages) -> Callable[[Path], float]:
    """Top-1 accuracy of a file on the whole test split."""
    test, size = images.dataset.test, images.dataset.resolution

    def accuracy(path: Path) -> float:
        right, programs = 0, {}
        for indices in torch.arange(len(test)).split(BATCH):
            count = len(indices)
            if count not in programs:
                programs[count] = backend.load(path, (count, 3, size, size))
            logits = programs[count].run(images.augmenter.plain(test.batch(indices)))
            right += int((logits.argmax(1) == test.labels[indices]).sum())
        return right / len(test)

    return accuracy


def num_bytes(path: Path) -> int:
    """Of a file and of those that belong to it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*"))


def compare(
    backend: QuantizingBackend, suffix: str, subject: Subject, images: HeldOutImages,
    calibration: torch.Tensor, sizes: tuple[int, int], folder: Path, reporter: Reporter,
) -> tuple[dict[str, Any], dict[str, Program]]:  # fmt: skip
    """Accuracy and bytes at the trained resolution; programs to be timed at both."""
    network, accuracy = subject.network().eval(), evaluator(backend, images)
    before, row, programs = images.accuracy(network), {}, {}
    for size in sizes:
        source, target = (folder / f"{name}-{size}{suffix}" for name in ("fp32", "int8"))
        conversion = Conversion(input_shape=(1, 3, size, size), dynamic_batch=True)
        backend.convert(network, conversion, source)
        inputs = interpolate(calibration, (size, size), mode="bilinear") if row else calibration
        batches = [image[None].numpy() for image in inputs]
        if row:  # the deployment resolution, at which the accuracy means nothing
            backend.quantize(source, target, batches, row["kept"])
        else:
            found = quantized(
                *(backend, source, target), network=network, images=batches, accuracy=accuracy,
                reference_accuracy=before, max_drop=1.0, reporter=reporter,
            )  # fmt: skip
            row = {"pytorch": before, "fp32": accuracy(source), "int8": accuracy(target)}
            row |= {"bytes": {"fp32": num_bytes(source), "int8": num_bytes(target)}}
            row |= {"ratio": round(num_bytes(source) / num_bytes(target), 3)}
            row |= found.model_dump(exclude={"max_drop"})
        for name, path in (("fp32", source), ("int8", target)):
            programs[f"{name} {size}"] = backend.load(path, (1, 3, size, size))
    return row, programs


def trained(run: Path, args: argparse.Namespace, reporter: Reporter) -> Subject:
    """The network of a run, which is trained if it is not there."""
    if not (run / "subnet.safetensors").is_file():
        architecture = load_architecture(HERE.parent / "default_search" / "architecture.json")
        overrides: dict[str, Any] = {"epochs": 10, "batch_size": 128}
        if args.smoke:
            architecture = load_space("toy").extreme(lambda spec: spec.kernel_size, largest=False)
            overrides["epochs"] = 1
        if args.data:
            overrides |= {"data": args.data, "val": args.val}
        train(Subject(architecture), overrides, run, reporter)
    return open_subject(str(run))


def main() -> None:
    """Train if there is no network yet, quantise, measure everything together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="the toy space, nothing kept")
    parser.add_argument("--run", type=Path, help="a finished run, or where to train")
    parser.add_argument("--data", help="folder or zip of images by class; digits if not given")
    parser.add_argument("--val", help="folder or zip with the test images")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    run, plan = args.run or folder / "run", Plan(*((3, 2) if args.smoke else (40, 20)))
    with Reporter() as reporter:
        subject = trained(run, args, reporter)
        images = open_test_images(subject, {}, "command line")
        chosen = torch.linspace(0, len(images.dataset.train) - 1, 128).long()
        calibration = images.augmenter.plain(images.dataset.train.batch(chosen)).contiguous()
        sizes = (images.dataset.resolution, 64 if args.smoke else subject.architecture.resolution)
        rows, programs, header = {}, {}, {}
        for runtime, suffix in SUFFIXES.items():
            device = load_device("host").model_copy(update={"runtime": runtime})
            backend = open_backend(device, folder)
            assert isinstance(backend, QuantizingBackend)
            (folder / runtime).mkdir()
            rows[runtime], found = compare(
                *(backend, suffix, subject, images, calibration, sizes, folder / runtime, reporter)
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
        "network": subject.architecture.name,
        "params": sum(p.numel() for p in subject.network().parameters()),
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
