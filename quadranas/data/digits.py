"""The built-in data set: scikit-learn's digits."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from quadranas.data.decoding import fit
from quadranas.data.image_set import ImageSet
from quadranas.data.splits import hold_out


def load_digits(resolution: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Training and test split of the 1797 digits (8 x 8 pixels, grey values 0 to 16).

    Each split is resized with its first batch.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = torch.from_numpy(digits.target.astype(np.int64))

    def split(members: Tensor) -> ImageSet:
        def decode(indices: Tensor) -> Tensor:
            chosen = grey[members[indices].numpy()]
            return torch.from_numpy(
                np.stack([fit(Image.fromarray(image), resolution) for image in chosen])
            )

        return ImageSet(labels[members], decode, at_first_use=True)

    first, second = hold_out(labels, seed)
    return split(first), split(second)
