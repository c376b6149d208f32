"""Augmentation: what each one does to pixels and targets, and that it repeats itself."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from quadranas.data.augmentation import AugmentConfig, Augmenter

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
OFF: dict[str, Any] = {"flip": False, "crop_padding": 0}
EVERYTHING: dict[str, Any] = {
    "flip": True,
    "crop_padding": 4,
    "rand_augment_ops": 2,
    "mixup": 0.4,
    "cutmix": 1.0,
    "erasing": 0.5,
}


def augmenter(**changes: Any) -> Augmenter:
    return Augmenter(AugmentConfig(**(OFF | changes)), num_classes=5, mean=MEAN, std=STD)


def batch(count: int = 12, size: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 5, (count,), generator=generator)
    return images.permute(0, 3, 1, 2), labels


def to_unit(normalised: torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1] again."""
    return normalised * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def test_without_augmentation_images_are_normalised_and_labels_one_hot() -> None:
    images, labels = batch()
    augment = augmenter()
    found, targets = augment(images, labels, seed=0)
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - MEAN[channel]) / STD[channel]
        assert torch.allclose(found[:, channel].double(), expected, atol=1e-5)
    assert torch.equal(found, augment.plain(images))
    assert torch.equal(targets, torch.eye(5)[labels])
    for pixels in (found, augment.plain(images)):
        assert pixels.dtype == torch.float32
        assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", [*EVERYTHING, "everything"])
def test_augmentation_is_a_pure_function_of_images_labels_and_seed(name: str) -> None:
    augment = augmenter(**(EVERYTHING if name == "everything" else {name: EVERYTHING[name]}))
    images, labels = batch()
    before = images.clone()
    first = augment(images, labels, seed=7)
    torch.manual_seed(123)  # what the caller draws must not matter
    augment(*batch(seed=1), seed=5)
    second = augment(images, labels, seed=7)
    other = augment(images, labels, seed=8)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(images, before)
    assert first[0].shape == images.shape
    assert first[0].is_contiguous(memory_format=torch.channels_last)
    assert first[0].isfinite().all()
    assert not first[0].requires_grad


def test_the_callers_random_numbers_are_left_alone() -> None:
    import random

    import numpy as np

    augment = augmenter(**EVERYTHING)
    torch.manual_seed(11)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    augment(*batch(), seed=3)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()  # type: ignore[index]


def test_flip_mirrors_some_images_and_leaves_the_rest() -> None:
    images, labels = batch(40)
    augment = augmenter(flip=True)
    found, _ = augment(images, labels, seed=0)
    plain = augment.plain(images)
    mirrored = (found == plain.flip(3)).flatten(1).all(1)
    untouched = (found == plain).flatten(1).all(1)
    assert (mirrored ^ untouched).all()
    assert 10 <= int(mirrored.sum()) <= 30


def test_crop_shifts_each_image_by_up_to_the_padding_over_black() -> None:
    images, labels = batch(30)
    images = images.clamp(min=1)
    augment = augmenter(crop_padding=2)
    found, _ = augment(images, labels, seed=0)
    canvas = torch.nn.functional.pad(images / 255, [2] * 4)
    shifts = set()
    for index, image in enumerate(to_unit(found)):
        matches = [
            (dy, dx)
            for dy in range(5)
            for dx in range(5)
            if torch.allclose(canvas[index, :, dy : dy + 16, dx : dx + 16], image, atol=1e-5)
        ]
        assert len(matches) == 1
        shifts.add(matches[0])
    assert len(shifts) > 8
    assert {dy for dy, _ in shifts} == set(range(5))


def test_crop_follows_the_resolution_of_the_batch() -> None:
    augment = augmenter(crop_padding=2)
    for size in (16, 24, 16):
        assert augment(*batch(size=size), seed=0)[0].shape[-1] == size


def test_mixup_blends_pixels_and_targets_by_the_same_weight() -> None:
    shades = torch.tensor([0, 50, 100, 150, 200], dtype=torch.uint8)
    images = shades.view(5, 1, 1, 1).expand(5, 3, 8, 8).contiguous()
    found, targets = augmenter(mixup=1.0)(images, torch.arange(5), seed=2)
    blended = to_unit(found)[:, 0, 0, 0] * 255
    assert torch.allclose(blended, targets @ shades.float(), atol=1e-3)
    assert torch.allclose(targets.sum(1), torch.ones(5))
    assert (targets > 0).sum(1).max() == 2


@pytest.mark.parametrize(("alpha", "spread"), [(0.2, 0.4226), (1.0, 0.2887), (8.0, 0.1213)])
def test_mixup_weights_follow_the_beta_distribution(alpha: float, spread: float) -> None:
    images = torch.zeros(4000, 3, 2, 2, dtype=torch.uint8)
    labels = torch.zeros(4000, dtype=torch.int64)
    labels[::2] = 1
    _, targets = augmenter(mixup=alpha)(images, labels, seed=0)
    weights = targets.gather(1, labels[:, None]).flatten()
    weights = weights[weights < 1]  # partners of the other class; Beta has standard deviation
    assert weights.std() == pytest.approx(spread, abs=0.015)  # 1 / (2 sqrt(2 alpha + 1))


def test_cutmix_targets_are_the_shares_of_pixels() -> None:
    shades = torch.tensor([0, 50, 100, 150, 200], dtype=torch.uint8)
    images = shades.view(5, 1, 1, 1).expand(5, 3, 16, 16).contiguous()
    for seed in range(5):
        found, targets = augmenter(cutmix=1.0)(images, torch.arange(5), seed=seed)
        pasted = (to_unit(found)[:, 0] * 255).round()
        for label, shade in enumerate(shades.tolist()):
            share = (pasted == shade).flatten(1).float().mean(1)
            assert torch.allclose(share, targets[:, label], atol=1e-6)


def test_with_both_mixes_on_each_batch_draws_one() -> None:
    shades = torch.tensor([0, 50, 100, 150, 200], dtype=torch.uint8)
    images = shades.view(5, 1, 1, 1).expand(5, 3, 8, 8).contiguous()
    augment = augmenter(mixup=1.0, cutmix=1.0)
    kinds = set()
    for seed in range(20):
        found, _ = augment(images, torch.arange(5), seed=seed)
        pixels = (to_unit(found)[:, 0] * 255).round().flatten().tolist()
        kinds.add("cutmix" if set(pixels) <= set(shades.tolist()) else "mixup")
    assert kinds == {"mixup", "cutmix"}


def test_erasing_sets_a_rectangle_to_the_mean_colour() -> None:
    images, labels = batch(40)
    augment = augmenter(erasing=0.5)
    found, _ = augment(images, labels, seed=0)
    changed = (found != augment.plain(images)).any(1)
    assert (found.permute(0, 2, 3, 1)[changed] == 0).all()
    erased = changed.flatten(1).any(1)
    assert 8 <= int(erased.sum()) <= 32
    for mask in changed[erased]:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert int(mask.sum()) >= 0.9 * int(rows * columns)  # a pixel may equal the mean by itself


@pytest.mark.parametrize("magnitude", [1, 9, 29])
def test_rand_augment_stays_within_the_range_of_pixels(magnitude: int) -> None:
    augment = augmenter(rand_augment_ops=15, rand_augment_magnitude=magnitude)
    found = to_unit(augment(*batch(), seed=0)[0])
    assert found.min() > -1e-4
    assert found.max() < 1 + 1e-4


def test_rand_augment_differs_between_the_groups_of_a_batch() -> None:
    images = batch(1)[0].expand(64, 3, 16, 16)
    found, _ = augmenter(rand_augment_ops=1)(images, torch.zeros(64, dtype=torch.int64), seed=1)
    firsts = found[::16]
    assert len(firsts.flatten(1).unique(dim=0)) >= 3


@pytest.mark.parametrize("count", [1, 2])
def test_tiny_batches_are_augmented_too(count: int) -> None:
    images, labels = batch(count)
    for seed in range(6):
        found, targets = augmenter(**EVERYTHING)(images, labels, seed=seed)
        assert found.shape == images.shape
        assert torch.allclose(targets.sum(1), torch.ones(count))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_padding": -1}, "crop_padding"),
        ({"rand_augment_ops": 16}, "rand_augment_ops"),
        ({"rand_augment_magnitude": 30}, "rand_augment_magnitude"),
        ({"mixup": -0.1}, "mixup"),
        ({"cutmix": float("nan")}, "cutmix"),
        ({"erasing": 1.5}, "erasing"),
        ({"colour": 1}, "colour"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentConfig(**(OFF | changes))


def test_kornia_is_imported_only_when_needed() -> None:
    code = (
        "import sys; from quadranas.data.augmentation import AugmentConfig, Augmenter; "
        "Augmenter(AugmentConfig(flip=False, crop_padding=0), num_classes=2, mean=(0,0,0), "
        "std=(1,1,1)); sys.exit('kornia' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
