"""The built-in data set: scikit-learn's digits."""

import numpy as np
import torch
from PIL import Image

from quadranas.data.decoding import fit
from quadranas.data.image_set import ImageSet, picker
from quadranas.data.splits import hold_out


def load_digits(resolution: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Training and test split of the 1797 digits (8 x 8 pixels, grey values 0 to 16)."""
    from sklearn import datasets

    digits = datasets.load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    pixels = torch.from_numpy(np.stack([fit(Image.fromarray(g), resolution) for g in grey]))
    labels = torch.from_numpy(digits.target.astype(np.int64))
    first, second = hold_out(labels, seed)
    return (
        ImageSet(labels[first], picker(pixels[first])),
        ImageSet(labels[second], picker(pixels[second])),
    )
