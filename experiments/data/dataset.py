"""What a data set is, once loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Split(NamedTuple):
    """Images and labels in one order. Host arrays.

    Attributes:
      images: [N, H, W, C] uint8, grey or RGB levels.
      labels: [N] int32, classes counted from 0.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The three splits of a data set, and how to normalize its images.

    Attributes:
      name: the name it was loaded by.
      train: the training images without the validation images.
      validation: the last 5,000 training images.
      test: the test images.
      num_classes: number of classes.
      mean: per channel, of images scaled to [0, 1].
      std: per channel, of images scaled to [0, 1].
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def with_train_images(self, count: int | None) -> Dataset:
        """The same with the first `count` training images only; None keeps all."""
        return replace(self, train=Split(self.train.images[:count], self.train.labels[:count]))
