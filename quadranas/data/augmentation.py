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

Transform: TypeAlias = Callable[[Tensor], Tensor]
Mix: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class AugmentConfig(Frozen):
    """The augmentations to use; 0 switches one off.

    Args:
        flip: mirror images left to right with probability 1/2.
        crop_padding: width of the black border that is added before a random crop to the old
            size, in pixels.
        rand_augment_ops: number of operations per image; RandAugment, arXiv:1909.13719.
        rand_augment_magnitude: strength of the operations; kornia excludes 0 and 30.
        mixup: alpha of the Beta distribution of the mixing weight; mixup, arXiv:1710.09412.
        cutmix: alpha of the distribution of the pasted area; CutMix, arXiv:1905.04899.
        erasing: share of images with a rectangle erased; random erasing, arXiv:1708.04896.
    """

    flip: bool = False
    crop_padding: int = Field(default=0, ge=0, le=MAX_PADDING)
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
        self._mean = torch.tensor(mean).view(1, 3, 1, 1)
        self._std = torch.tensor(std).view(1, 3, 1, 1)
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
    def __call__(self, images: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """Augment one batch for training.

        torch's global CPU generator is seeded and then restored, so no other thread may draw from
        it meanwhile.

        Args:
            images: uint8 (B, 3, R, R).
            labels: int64 (B,).
            seed: seed of all random choices.

        Returns: normalised images, float32 (B, 3, R, R), channels_last; targets, float32
        (B, num_classes), each row summing to 1.
        """
        targets = one_hot(labels, self.num_classes).float()
        with _seeded(seed):
            pixels = scaled(images)
            for transform in (self._cropped(images.shape[-1]), self._flip, self._rand_augment):
                pixels = transform(pixels) if transform else pixels
            pixels = normalised(pixels, self._mean, self._std)
            pixels = self._erase(pixels) if self._erase else pixels
            if self._mixes:
                chosen = int(torch.randint(len(self._mixes), ()))
                pixels, targets = self._mixes[chosen](pixels, labels)
        return pixels.contiguous(memory_format=torch.channels_last), targets

    def plain(self, images: Tensor) -> Tensor:
        """Normalised images without augmentation, for evaluation, channels_last."""
        pixels = normalised(scaled(images), self._mean, self._std)
        return pixels.contiguous(memory_format=torch.channels_last)

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


def _flip() -> Transform:
    from kornia.augmentation import RandomHorizontalFlip

    flip: Transform = RandomHorizontalFlip(p=0.5)
    return flip


def _crop(resolution: int, padding: int) -> Transform:
    from kornia.augmentation import RandomCrop

    # Slicing copies pixels. Resampling warps them, and is slower: 2/3 of the speed (kornia 0.9.0).
    size = (resolution, resolution)
    crop: Transform = RandomCrop(size, padding=padding, cropping_mode="slice")
    return crop


def _erase(probability: float) -> Transform:
    from kornia.augmentation import RandomErasing

    erase: Transform = RandomErasing(p=probability)
    return erase


def _rand_augment(config: AugmentConfig) -> Transform:
    from kornia.augmentation.auto import RandAugment

    augment = RandAugment(config.rand_augment_ops, config.rand_augment_magnitude)
    return lambda pixels: torch.cat([augment(part) for part in pixels.split(RAND_AUGMENT_GROUP)])


def _mixup(alpha: float, num_classes: int) -> Mix:
    from kornia.augmentation import RandomMixUpV2

    mixup: Any = RandomMixUpV2(data_keys=["input", "class"])
    weights = torch.distributions.Beta(alpha, alpha)

    def mix(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        params = mixup.forward_parameters(pixels.shape)
        params["mixup_lambdas"] = weights.sample(labels.shape)  # kornia draws them uniformly
        mixed, pairs = mixup(pixels, labels, params=params)
        return mixed, _soft_targets(pairs, 1 - pairs[:, 2], num_classes)

    return mix


def _cutmix(alpha: float, num_classes: int) -> Mix:
    from kornia.augmentation import RandomCutMixV2

    cutmix: Any = RandomCutMixV2(
        data_keys=["input", "class"], beta=torch.tensor(alpha), use_correct_lambda=True
    )

    def mix(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mixed, pairs = cutmix(pixels, labels)
        return mixed, _soft_targets(pairs[0], pairs[0, :, 2], num_classes)

    return mix


def _soft_targets(pairs: Tensor, own_weight: Tensor, num_classes: int) -> Tensor:
    """Targets from kornia's rows of (own label, other label, its lambda)."""
    own, other = one_hot(pairs[:, :2].long(), num_classes).float().unbind(1)
    return own_weight[:, None] * own + (1 - own_weight[:, None]) * other
