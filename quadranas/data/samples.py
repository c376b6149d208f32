"""Images of a split as pixels: each a pure function of its index, the epoch and the seed.

Shapes: B images of a batch, R the resolution; pixels are (B, R, R, 3) in uint8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from quadranas.data.decoding import Pixels
from quadranas.data.faults import raise_faults
from quadranas.data.image_files import ImageFiles, in_threads
from quadranas.data.random_crop import Crop, cropped
from quadranas.errors import QuadranasError


@final
@dataclass(frozen=True)
class Samples:
    """The images of a split at one resolution, however small their files are; picklable.

    Args:
        resolution: R, the height and width of the decoded images.
        resized_crop: smallest share of the area of a random crop; 0 for the whole image, of which
            the centre is cropped.
    """

    files: ImageFiles
    resolution: int
    resized_crop: float = 0.0

    def sample(self, index: int, *, epoch: int = 0, seed: int = 0) -> Pixels:
        """One image, (R, R, 3).

        Args:
            epoch, seed: they determine the crop, if it is random.

        Raises:
            QuadranasError: it is corrupt, or its file cannot be read.
        """
        if not self.resized_crop:
            return self.files.read(index, self.resolution)
        crop = Crop.drawn(self.resized_crop, index=index, epoch=epoch, seed=seed)
        return self.files.use(
            index, True, lambda image, file: cropped(image, crop, self.resolution)
        )

    def shape(self, count: int) -> tuple[int, int, int, int]:
        """The shape of a batch of `count` images."""
        return count, self.resolution, self.resolution, 3

    def batch(
        self,
        indices: Sequence[int],
        *,
        epoch: int = 0,
        seed: int = 0,
        num_threads: int = 1,
        out: Pixels | None = None,
    ) -> Pixels:
        """Several images, (B, R, R, 3); arguments and errors as in `sample`, of all at once.

        Args:
            out: array for the pixels; None for a new one.
        """
        pixels = np.empty(self.shape(len(indices)), dtype=np.uint8) if out is None else out

        def fault_of(position: int) -> QuadranasError | None:
            try:
                pixels[position] = self.sample(indices[position], epoch=epoch, seed=seed)
            except QuadranasError as error:
                return error
            return None

        faults = in_threads(fault_of, len(indices), num_threads)
        raise_faults([fault for fault in faults if fault is not None], len(indices))
        return pixels
