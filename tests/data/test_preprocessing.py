"""Pixels become the input of a network: the same values wherever it is done."""

import numpy as np
import torch

from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.preprocessing import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING = Preprocessing(class_names=("a", "b"), mean=MEAN, std=STD, resolution=16)


def test_an_image_has_the_bits_of_a_bundles_script() -> None:
    pixels = np.arange(16 * 16 * 3, dtype=np.int64).reshape(16, 16, 3).astype(np.uint8)
    found = PREPROCESSING.tensor(pixels)
    expected = ((pixels / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)[None]
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), expected)


def test_an_image_is_what_an_evaluation_sees() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    augmenter = Augmenter(
        AugmentConfig(flip=False, crop_padding=0), num_classes=2, mean=MEAN, std=STD
    )
    batch = augmenter.plain(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    torch.testing.assert_close(PREPROCESSING.tensor(pixels), batch, rtol=1e-6, atol=1e-6)
