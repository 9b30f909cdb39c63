"""What a data set is, once loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .imagenet import Part


class Split(NamedTuple):
    """Images and labels in one order. Host arrays.

    Attributes:
      images: [N, H, W, C] uint8, grey or RGB levels.
      labels: [N] int32, classes counted from 0.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]

    @property
    def size(self) -> int:
        return len(self.labels)

    def some(self, number: int) -> Split:
        """So many, of all classes: data sets that are held are in no order of these."""
        return Split(self.images[:number], self.labels[:number])

    def batches(self, size: int) -> Iterator[Split]:
        """All of it in order; the last one may be smaller."""
        for start in range(0, self.size, size):
            yield Split(self.images[start : start + size], self.labels[start : start + size])


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The three splits of a data set, and how to normalize its images.

    Attributes:
      name: the name it was loaded by.
      train: the training images without the validation images. `Part`s are of data sets too large to be held.
      validation: some training images that are held out: the last 5,000, where they are held.
      test: the test images.
      num_classes: number of classes.
      mean: per channel, of images scaled to [0, 1].
      std: per channel, of images scaled to [0, 1].
    """

    name: str
    train: Split | Part
    validation: Split | Part
    test: Split | Part
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def with_train_images(self, count: int | None) -> Dataset:
        """The same with the first `count` training images only; None keeps all."""
        if isinstance(self.train, Part):
            fewer = self.train._replace(indices=self.train.indices[:count])
        else:
            fewer = Split(self.train.images[:count], self.train.labels[:count])
        return replace(self, train=fewer)

    def with_all_trained_on(self) -> Dataset:
        """The same, but the validation images are training images, too.

        Raises:
          ValueError: for a data set that is not held.
        """
        if isinstance(self.train, Part) or isinstance(self.validation, Part):
            raise ValueError(f"{self.name}: expected a data set that is held as a whole")
        images = np.concatenate([self.train.images, self.validation.images])
        labels = np.concatenate([self.train.labels, self.validation.labels])
        return replace(self, train=Split(images, labels))
