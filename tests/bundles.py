"""Bundles as tests need them: real files, made by hand."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from quadranas.backends.interface import Conversion, FileBackend
from quadranas.backends.registry import open_backend
from quadranas.deployment.bundle import CARD, SCRIPT, checksums, write_manifest
from quadranas.deployment.inference_script import inference_script
from quadranas.deployment.manifest import (
    Agreement,
    InputDescription,
    Latency,
    LatencyNote,
    Manifest,
)
from quadranas.deployment.model_card import model_card
from quadranas.latency.device import Device, load_device
from quadranas.latency.runtimes import RUNTIMES, file_formats, files_of
from quadranas.network.skeleton import build_subnet
from quadranas.space.architecture import Architecture
from quadranas.space.cost import count_macs, count_params
from quadranas.space.space_file import load_space
from tests.pictures import noise

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CLASS_NAMES = tuple(f"class {letter}" for letter in "abcdefghij")


def toy_architecture() -> Architecture:
    """The smallest network of the toy space."""
    return load_space("toy").extreme(lambda spec: spec.kernel_size, largest=False)


def toy_network(scramble: Callable[..., nn.Module]) -> nn.Module:
    """With weights for which every tensor matters."""
    return scramble(build_subnet(toy_architecture())).eval()


def device_for(file_format: str) -> Device:
    """This machine, one thread."""
    runtime = file_formats()[file_format]
    changes = {"tuning_trials": 0} if "tuning_trials" in RUNTIMES[runtime].settings else {}
    return load_device("host").configured(runtime=runtime, **changes)


def manifest_of(file_format: str, **changes: Any) -> Manifest:
    """What is known of the toy network; without files."""
    architecture = toy_architecture()
    artefact = files_of(file_format).artefact
    size = architecture.resolution
    content = {
        "name": "toy",
        "created": "2026-11-21",
        "quadranas": "0.1.0",
        "format": file_format,
        "precision": "fp32",
        "artefact": artefact,
        "files": {artefact: "0" * 64},
        "size_bytes": 12345,
        "params": count_params(architecture),
        "macs": count_macs(architecture),
        "operators": {"Conv": 7, "Mul": 2},
        "lowering": ("fold_batch_norm",),
        "runtime": "Runtime 1.2",
        "hardware": "a processor",
        "versions": {"torch": "2.13.0"},
        "made_for": device_for(file_format),
        "device": device_for(file_format),
        "input": InputDescription(shape=(None, 3, size, size), mean=MEAN, std=STD),
        "class_names": CLASS_NAMES,
        "agreement": Agreement(
            images="digits, test",
            num_images=64,
            max_abs_error=1.2e-5,
            relative_error=3.4e-6,
            tolerance=1e-3,
            top1_agreement=1.0,
        ),
        "latency": Latency(
            measured=LatencyNote(device="host", ms=0.1234, source="Runtime 1.2, 1 thread")
        ),
        "architecture": architecture,
    }
    return Manifest.model_validate(content | changes)


def write_bundle(folder: Path, manifest: Manifest, network: nn.Module) -> Path:
    """The network as a file of the manifest's format, with all that belongs to a bundle."""
    folder.mkdir()
    artefact = folder / manifest.artefact
    shape = manifest.input.shape
    batch = manifest.input.batch_size
    with closing(open_backend(manifest.device, folder.parent)) as backend:
        assert isinstance(backend, FileBackend)
        conversion = Conversion(input_shape=(batch, *shape[1:]), dynamic_batch=shape[0] is None)
        backend.convert(network, conversion, artefact)
    (folder / SCRIPT).write_text(inference_script(manifest.format), encoding="utf-8")
    (folder / CARD).write_text(model_card(manifest), encoding="utf-8")
    write_manifest(folder, manifest.model_copy(update={"files": checksums(folder)}))
    return folder


def write_pictures(folder: Path, size: int) -> list[Path]:
    """Images whose preparation takes every step: upright, oblong, transparent, turned."""
    folder.mkdir()
    plain = Image.fromarray(noise(1, size, size, 3))
    oblong = Image.fromarray(noise(2, 2 * size, 3 * size, 3))
    see_through = Image.fromarray(noise(3, 50, 40, 4))
    turned = Image.fromarray(noise(4, 40, 60, 3))
    deep = Image.fromarray(noise(5, 40, 40).astype(np.uint16) * 257)
    exif = turned.getexif()
    exif[0x0112] = 6
    paths = [
        folder / f"{name}.png" for name in ("plain", "oblong", "see-through", "turned", "deep")
    ]
    for path, image in zip(paths, (plain, oblong, see_through, turned, deep), strict=True):
        image.save(path, exif=exif if path.stem == "turned" else None)
    return paths


def expected_scores(
    network: nn.Module, pixels: np.ndarray, mean: Any = MEAN, std: Any = STD
) -> np.ndarray:
    """What PyTorch makes of pixels (R, R, 3), written out plainly in float64, (num_classes,)."""
    scaled = (pixels.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    images = torch.from_numpy(scaled.transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        scores: np.ndarray = network.double()(images)[0].softmax(0).numpy()
    network.float()
    return scores
