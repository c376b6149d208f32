"""A trained network: accuracy and bytes of its files in 32 and 8 bits, and programs to time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate

from quadranas.backends.interface import Conversion, Program, QuantizingBackend
from quadranas.commands.train import train
from quadranas.data.task import num_correct
from quadranas.deployment.quantization import quantized
from quadranas.reporter import Reporter
from quadranas.runs.stored_network import HeldOutImages, StoredNetwork, open_network
from quadranas.space.architecture import load_architecture
from quadranas.space.space_file import load_space

HERE = Path(__file__).parent
BATCH = 100


def trained(run: Path, data: dict[str, str], smoke: bool, reporter: Reporter) -> StoredNetwork:
    """The network of a run, which is trained if it is not there."""
    if not (run / "subnet.safetensors").is_file():
        architecture = load_architecture(HERE.parent / "default_search" / "architecture.json")
        epochs = 1 if smoke else 10
        if smoke:
            architecture = load_space("toy").extreme(lambda spec: spec.kernel_size, largest=False)
        train(architecture, epochs=epochs, batch_size=128, output=run, reporter=reporter, **data)
    return open_network(str(run))


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
            right += num_correct(logits, test.labels[indices])
        return right / len(test)

    return accuracy


def num_bytes(path: Path) -> int:
    """Of a file and of those that belong to it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*"))


def compare(
    backend: QuantizingBackend, suffix: str, stored: StoredNetwork, images: HeldOutImages,
    calibration: torch.Tensor, sizes: tuple[int, int], folder: Path, reporter: Reporter,
) -> tuple[dict[str, Any], dict[str, Program]]:  # fmt: skip
    """Accuracy and bytes at the trained resolution; programs to be timed at both."""
    network, accuracy = stored.network().eval(), evaluator(backend, images)
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
