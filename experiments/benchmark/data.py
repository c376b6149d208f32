"""Speed of the data: loader against a bare loop of the same Pillow calls, and a large index.

The loop and the loaders are interleaved in one run, and the best round of each counts. Other
programs on the machine slow down two workers more than a loop; the processor time per image, of
the worker and the main process together, hardly depends on them. The index is of folders that are
simulated: a listing gives their entries, so no file is opened.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps

from quadranas.data import dataset, folders
from quadranas.data.dataset import load_dataset
from quadranas.data.image_set import ImageSet
from quadranas.data.index_cache import CACHE_VARIABLE
from quadranas.data.listing import find_splits
from quadranas.data.loader import PREFETCHED, Loader
from quadranas.data.random_crop import Crop, cropped
from quadranas.data.splits import epoch_batches, split_halves
from quadranas.files import source_commit

RESOLUTION, BATCH_SIZE = 224, 32
SHARES = (0.0, 0.35)
"""Smallest shares of the area of a crop: whole images, and random resized crops."""

PAUSE_S = 0.3
"""Time without work after which workers have prepared all batches that they prepare in advance."""

CLASSES, IMAGES_PER_CLASS = 1000, 1280


def write_photos(folder: Path, count: int) -> None:
    """JPEG files of 500 x 375 pixels and about 110 kB, as in ImageNet, in two classes."""
    draw = np.random.default_rng(0)
    for number in range(count):
        place = folder / "ab"[number % 2] / f"{number:05}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (38, 50, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
        noisy = smooth + draw.normal(0, 14, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(place, quality=90)


def bare_loop(paths: list[Path], share: float, epoch: int) -> None:
    """The Pillow calls of the loader, image by image."""
    for index, path in enumerate(paths):
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            if share:
                cropped(image, Crop.drawn(share, index=index, epoch=epoch, seed=0), RESOLUTION)
                continue
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            size = (RESOLUTION, RESOLUTION)
            np.asarray(ImageOps.fit(image.convert("RGB"), size, Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class Speed:
    """Images per second, and processor time per image in seconds."""

    images_per_s: float
    cpu_s: float


def cpu_seconds() -> float:
    """Processor time of this process and its workers; of Linux, which has `/proc`."""
    ticks = os.sysconf("SC_CLK_TCK")
    workers = 0.0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8").split()
        workers += (int(fields[13]) + int(fields[14])) / ticks
    return time.process_time() + workers


def rest() -> None:
    """Wait until the workers have nothing to do."""
    used = -1.0
    while cpu_seconds() - used > 0.02:
        used = cpu_seconds()
        time.sleep(PAUSE_S)


class Run:
    """A loader over all images in random order, asked for batch after batch."""

    def __init__(self, images: ImageSet, workers: int, num_steps: int) -> None:
        per_epoch = len(images) // BATCH_SIZE

        def plan(number: int) -> torch.Tensor:
            epoch, index = divmod(number, per_epoch)
            return epoch_batches(torch.arange(len(images)), BATCH_SIZE, seed=epoch)[index]

        self.loader = Loader(
            *(images, plan),
            num_steps=num_steps,
            workers=workers,
            epoch_of=lambda number: number // per_epoch,
        )
        self.next = 0

    def take(self, count: int) -> None:
        """The next batches."""
        for _ in range(count):
            self.loader.batch(self.next)
            self.next += 1

    def speed(self, count: int) -> Speed:
        """Speed of batches that are not prepared before the time begins."""
        self.take(1 + PREFETCHED * self.loader.workers)
        start, used = time.perf_counter(), cpu_seconds()
        self.take(count)
        images = count * BATCH_SIZE
        return Speed(images / (time.perf_counter() - start), (cpu_seconds() - used) / images)

    def close(self) -> None:
        """End the workers."""
        self.loader.close()


def loop_speed(paths: list[Path], share: float, epoch: int) -> Speed:
    """Speed of the bare loop."""
    start, used = time.perf_counter(), time.process_time()
    bare_loop(paths, share, epoch)
    count = len(paths)
    return Speed(count / (time.perf_counter() - start), (time.process_time() - used) / count)


def measure_loader(count: int, rounds: int) -> dict[str, Any]:
    """Throughput of the loaders against the bare loop, for whole images and crops."""
    results: dict[str, Any] = {"photos": count, "rounds": rounds}
    dataset.MEMORY_LIMIT_BYTES = 0
    batches = count // BATCH_SIZE
    with tempfile.TemporaryDirectory() as name:
        write_photos(Path(name), count)
        paths = sorted(Path(name).glob("*/*.jpg"))
        results["kB"] = sum(path.stat().st_size for path in paths) / count / 1000
        train = load_dataset(name, val=name, resolution=RESOLUTION).train
        for share in SHARES:
            images = train.with_random_crops(share)
            with ExitStack() as stack:
                runs = [stack.enter_context(closing(Run(images, w, 10**6))) for w in (1, 2)]
                speeds: list[list[Speed]] = [[], [], []]
                for number in range(rounds):
                    speeds[0].append(loop_speed(paths, share, number))
                    for run, found in zip(runs, speeds[1:], strict=True):
                        found.append(run.speed(batches))
                        rest()
            loop, one, two = (max(s.images_per_s for s in found) for found in speeds)
            loop_cpu, one_cpu, _ = (min(s.cpu_s for s in found) for found in speeds)
            results["crops" if share else "whole"] = {
                "loop_images_per_s": loop,
                "one_worker": one / loop,
                "two_workers": two / loop,
                "processor_time": one_cpu / loop_cpu,
            }
    return results


@dataclass(frozen=True)
class Entry:
    """An entry of a simulated folder, as `os.scandir` gives it."""

    name: str
    path: str
    is_folder: bool

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.is_folder

    def is_file(self) -> bool:
        """Whether it is a file."""
        return not self.is_folder


def simulated_scan(root: Path, classes: int) -> Any:
    """Lists folders as `os.scandir` does: train/ and val/ with one folder per class."""

    @contextmanager
    def scan(place: str) -> Iterator[Iterator[Entry]]:
        parts = Path(place).relative_to(root).parts
        if len(parts) == 2:
            number = int(parts[1][1:])
            count = IMAGES_PER_CLASS if parts[0] == "train" else 50
            names = (f"{parts[1]}_{number * 7919 + i * 13}.JPEG" for i in range(count))
            yield (Entry(name, f"{place}/{name}", False) for name in names)
        else:
            names = (f"n{n:08}" for n in range(classes)) if parts else iter(("train", "val"))
            yield (Entry(name, f"{place}/{name}", True) for name in names)

    return scan


def start_up(root: Path, classes: int) -> None:
    """List a simulated folder as a command does before training; prints time and memory."""
    scan = simulated_scan(root, classes)
    stamp: Any = SimpleNamespace(st_mtime_ns=10**9)
    real = folders.scan_folder
    folders.scan_folder = lambda path, known: real(path, known, scan=scan, stat=lambda _: stamp)
    start = time.perf_counter()
    train, test = find_splits(root, None)
    assert test is not None
    weights, _ = split_halves(torch.from_numpy(train.labels), seed=0)
    epoch_batches(weights, 256, seed=0)
    print(
        json.dumps(
            {
                "images": len(train) + len(test),
                "seconds": time.perf_counter() - start,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def measure_start_up(classes: int) -> dict[str, Any]:
    """Time and memory of listing a large folder, without and with its index in the cache."""
    results = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "cached"):
            done = subprocess.run(
                [sys.executable, __file__, "--start-up", cache, "--classes", str(classes)],
                env=os.environ | {CACHE_VARIABLE: cache},
                capture_output=True,
                text=True,
                check=True,
            )
            results[name] = json.loads(done.stdout)
    return results


def main() -> None:
    """Measure, print, and keep the figures in `--output`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--classes", type=int, default=CLASSES, help="of the simulated folder")
    parser.add_argument("--smoke", action="store_true", help="few photos, one round")
    parser.add_argument("--start-up", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="folder to keep the figures in")
    args = parser.parse_args()
    if args.start_up:
        return start_up(args.start_up, args.classes)
    photos, rounds, classes = (
        (64, 1, 20) if args.smoke else (args.photos, args.rounds, args.classes)
    )
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "pillow": PIL.__version__,
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    results["start_up"] = measure_start_up(classes)
    for name, found in results["start_up"].items():
        print(
            f"{name} index of {found['images']} images: {found['seconds']:.2f} s, "
            f"peak memory {found['peak_mb']:.0f} MB"
        )
    results["loader"] = measure_loader(photos, rounds)
    for kind in ("whole", "crops"):
        found = results["loader"][kind]
        print(
            f"{kind} photos of {results['loader']['kB']:.0f} kB to {RESOLUTION} pixels: bare loop "
            f"{found['loop_images_per_s']:.0f} images/s, loader with 1 worker "
            f"{found['one_worker']:.2f} times, 2 workers {found['two_workers']:.2f} times; "
            f"processor time per image {found['processor_time']:.2f} times"
        )
    if args.output:
        (args.output / "data.json").write_text(json.dumps(results, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
