"""Augmentation: uint8 images become normalised float batches with soft targets, by kornia.

Shapes: B images of a batch, C = 3 channels, R the resolution.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from quadranas.data.dataset import Dataset
from quadranas.data.preprocessing import Preprocessing, normalised, scaled
from quadranas.validation import Frozen

RAND_AUGMENT_GROUP = 16
"""Number of images that share their RandAugment operations: kornia draws the operations once per
call, for all images. 16 keeps a batch diverse, at about half the speed of one call per batch."""

MAX_PADDING = 256
"""Maximum number of pixels added on every side."""

Transform: TypeAlias = Callable[[Tensor, torch.Size, slice], Tensor]
"""Changes the pixels of a part of a batch: its shape as a whole, and the positions of the part."""

Mix: TypeAlias = Callable[[Tensor, Tensor, torch.Size, slice], tuple[Tensor, Tensor]]
"""The same for pixels and labels; returns pixels and soft targets."""

OF_THE_SHAPE = ("forward_input_shape", "image_shape")
"""kornia's parameters that are shapes, and not one value per image."""


class AugmentConfig(Frozen):
    """The augmentations to use; 0 switches one off.

    Args:
        flip: mirror images left to right with probability 1/2.
        crop_padding: width of the black border that is added before a random crop to the old
            size, in pixels.
        resized_crop: smallest share of the area of a random crop that is resized to the image size
            (RandomResizedCrop, arXiv:1409.4842, Sec. 6), from 0 to 1, such as 0.35. Images are
            then decoded anew in every epoch.
        rand_augment_ops: number of operations per image; RandAugment, arXiv:1909.13719.
        rand_augment_magnitude: strength of the operations; kornia excludes 0 and 30.
        mixup: alpha of the Beta distribution of the mixing weight; mixup, arXiv:1710.09412.
        cutmix: alpha of the distribution of the pasted area; CutMix, arXiv:1905.04899.
        erasing: share of images with a rectangle erased; random erasing, arXiv:1708.04896.
    """

    flip: bool = False
    crop_padding: int = Field(default=0, ge=0, le=MAX_PADDING)
    resized_crop: float = Field(default=0.0, ge=0, le=1)
    rand_augment_ops: int = Field(default=0, ge=0, le=15)
    rand_augment_magnitude: int = Field(default=9, ge=1, le=29)
    mixup: float = Field(default=0.0, ge=0, le=10)
    cutmix: float = Field(default=0.0, ge=0, le=10)
    erasing: float = Field(default=0.0, ge=0, le=1)


class Augmenter:
    """Augments and normalises batches; a pure function of images, labels and seed.

    The order is crop, flip, RandAugment, normalisation, erasing (with the mean colour), mixing.
    If both mixup and CutMix are on, each batch draws one of them. Images may be on any device;
    random numbers are always drawn on the CPU.

    Args:
        num_classes: width of the soft targets.
        mean, std: statistics of the images per channel, for pixels in [0, 1].
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        num_classes: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self.config = config
        self.num_classes, self.mean, self.std = num_classes, mean, std
        self._on_devices: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._crop: dict[int, Transform] = {}
        self._flip = _flip() if config.flip else None
        self._rand_augment = _rand_augment(config) if config.rand_augment_ops else None
        self._erase = _erase(config.erasing) if config.erasing else None
        self._mixes: list[Mix] = []
        if config.mixup:
            self._mixes.append(_mixup(config.mixup, num_classes))
        if config.cutmix:
            self._mixes.append(_cutmix(config.cutmix, num_classes))

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        config: AugmentConfig | None = None,
        *,
        preprocessing: Preprocessing | None = None,
    ) -> "Augmenter":
        """The augmentation of a data set's images.

        Args:
            config: by default none.
            preprocessing: what a trained network expects, instead of what the data set needs.
        """
        colours = preprocessing or dataset
        return cls(
            config or AugmentConfig(),
            num_classes=dataset.num_classes,
            mean=colours.mean,
            std=colours.std,
        )

    def at(self, ratio: float) -> "Augmenter":
        """The same augmentation for images that are larger by a ratio, with larger crops."""
        padding = min(MAX_PADDING, round(self.config.crop_padding * ratio))
        return Augmenter(
            self.config.model_copy(update={"crop_padding": padding}),
            num_classes=self.num_classes,
            mean=self.mean,
            std=self.std,
        )

    @torch.no_grad()
    def __call__(
        self, images: Tensor, labels: Tensor, *, seed: int, start: int = 0, size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Augment one batch for training, or the part of it that one process computes.

        Random choices are drawn for the whole batch, so that the part is augmented as within it.
        torch's global CPU generator is seeded and then restored, so no other thread may draw from
        it meanwhile.

        Args:
            images: uint8 (B, 3, R, R).
            labels: int64 (B,), on the CPU.
            seed: seed of all random choices.
            start: position of the first image in the whole batch.
            size: number of images in the whole batch; by default B.

        Returns: normalised images, float32 (B, 3, R, R), channels_last; targets, float32
        (B, num_classes), each row summing to 1.
        """
        part = slice(start, start + len(images))
        whole = torch.Size((size or len(images), *images.shape[1:]))
        targets = one_hot(labels, self.num_classes).float().to(images.device, non_blocking=True)
        with _seeded(seed):
            pixels = scaled(images)
            for transform in (self._cropped(images.shape[-1]), self._flip, self._rand_augment):
                pixels = transform(pixels, whole, part) if transform else pixels
            pixels = normalised(pixels, *self.statistics(images.device))
            pixels = self._erase(pixels, whole, part) if self._erase else pixels
            if self._mixes:
                chosen = int(torch.randint(len(self._mixes), ()))
                pixels, targets = self._mixes[chosen](pixels, labels, whole, part)
        return pixels.contiguous(memory_format=torch.channels_last), targets

    def plain(self, images: Tensor) -> Tensor:
        """Normalised images without augmentation, for evaluation, channels_last."""
        pixels = normalised(scaled(images), *self.statistics(images.device))
        return pixels.contiguous(memory_format=torch.channels_last)

    @property
    def mixes(self) -> bool:
        """Whether an image may be mixed with its neighbour in the batch."""
        return bool(self._mixes)

    def statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation on a device, (1, 3, 1, 1), copied there once."""
        if device not in self._on_devices:
            mean, std = (
                torch.tensor(s).view(1, 3, 1, 1).to(device) for s in (self.mean, self.std)
            )
            self._on_devices[device] = (mean, std)
        return self._on_devices[device]

    def _cropped(self, resolution: int) -> Transform | None:
        """The crop for a resolution, which kornia needs in advance."""
        if self.config.crop_padding and resolution not in self._crop:
            self._crop[resolution] = _crop(resolution, self.config.crop_padding)
        return self._crop.get(resolution)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generator kornia draws from, torch's global CPU one, and restore it afterwards.

    `torch.manual_seed` would seed the generators of the accelerators too and not restore them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _part_of(params: Any, part: slice) -> Any:
    """Kornia's parameters for a whole batch, reduced to those of a part of it."""
    if isinstance(params, Tensor):
        return params[part]
    if isinstance(params, dict):
        return {
            key: value if key in OF_THE_SHAPE else _part_of(value, part)
            for key, value in params.items()
        }
    if params is None:
        return None
    return [type(item)(item.name, _part_of(item.data, part)) for item in params]


def _by_kornia(augmentation: Any) -> Transform:
    """An augmentation of kornia that draws for the whole batch and changes a part of it."""

    def transform(pixels: Tensor, whole: torch.Size, part: slice) -> Tensor:
        params = _part_of(augmentation.forward_parameters(whole), part)
        changed: Tensor = augmentation(pixels, params=params)
        return changed

    return transform


def _flip() -> Transform:
    from kornia.augmentation import RandomHorizontalFlip

    return _by_kornia(RandomHorizontalFlip(p=0.5))


def _crop(resolution: int, padding: int) -> Transform:
    from kornia.augmentation import RandomCrop

    # Slicing copies pixels. Resampling warps them, and is slower: 2/3 of the speed (kornia 0.9.0).
    size = (resolution, resolution)
    return _by_kornia(RandomCrop(size, padding=padding, cropping_mode="slice"))


def _erase(probability: float) -> Transform:
    from kornia.augmentation import RandomErasing

    return _by_kornia(RandomErasing(p=probability))


def _rand_augment(config: AugmentConfig) -> Transform:
    from kornia.augmentation.auto import RandAugment

    augment = _by_kornia(RandAugment(config.rand_augment_ops, config.rand_augment_magnitude))

    def transform(pixels: Tensor, whole: torch.Size, part: slice) -> Tensor:
        changed = []
        for first in range(0, whole[0], RAND_AUGMENT_GROUP):
            group = torch.Size((min(RAND_AUGMENT_GROUP, whole[0] - first), *whole[1:]))
            # The positions of the part that lie in the group, in the pixels and in the group.
            start, stop = max(first, part.start), min(first + group[0], part.stop)
            inside = pixels[max(0, start - part.start) : max(0, stop - part.start)]
            changed.append(augment(inside, group, slice(start - first, max(start, stop) - first)))
        return torch.cat(changed)

    return transform


def _mixup(alpha: float, num_classes: int) -> Mix:
    from kornia.augmentation import RandomMixUpV2

    mixup: Any = RandomMixUpV2(data_keys=["input", "class"])
    weights = torch.distributions.Beta(alpha, alpha)

    def mix(
        pixels: Tensor, labels: Tensor, whole: torch.Size, part: slice
    ) -> tuple[Tensor, Tensor]:
        params = mixup.forward_parameters(whole)
        params["mixup_lambdas"] = weights.sample(whole[:1])  # kornia draws them uniformly
        params = _part_of(params, part) | {"mixup_pairs": _partners(len(pixels))}
        mixed, pairs = mixup(pixels, labels, params=params)
        return mixed, _soft_targets(pairs, 1 - pairs[:, 2], num_classes).to(mixed.device)

    return mix


def _cutmix(alpha: float, num_classes: int) -> Mix:
    from kornia.augmentation import RandomCutMixV2

    cutmix: Any = RandomCutMixV2(
        data_keys=["input", "class"], beta=torch.tensor(alpha), use_correct_lambda=True
    )

    def mix(
        pixels: Tensor, labels: Tensor, whole: torch.Size, part: slice
    ) -> tuple[Tensor, Tensor]:
        params = cutmix.forward_parameters(whole)
        params = _part_of(params, part) | {
            "mix_pairs": _partners(len(pixels))[None],
            "crop_src": params["crop_src"][:, part],
        }
        mixed, pairs = cutmix(pixels, labels, params=params)
        return mixed, _soft_targets(pairs[0], pairs[0, :, 2], num_classes).to(mixed.device)

    return mix


def _partners(size: int) -> Tensor:
    """The image that each image of a part is mixed with: its neighbour; an odd last one itself.

    Batches are in random order, so that neighbours are random pairs, and the parts of a batch
    keep them together (`Processes.part`).
    """
    return (torch.arange(size) ^ 1).clamp(max=size - 1)


def _soft_targets(pairs: Tensor, own_weight: Tensor, num_classes: int) -> Tensor:
    """Targets from kornia's rows of (own label, other label, its lambda)."""
    own, other = one_hot(pairs[:, :2].long(), num_classes).float().unbind(1)
    return own_weight[:, None] * own + (1 - own_weight[:, None]) * other
