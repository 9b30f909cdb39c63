"""ImageNet, too large to be held: images are read, decoded, cropped and flipped on the host while others are trained on.

The records of `imagenet2012` as tensorflow-datasets prepares them, or a folder of one's own: train/CLASS/*.JPEG and val/CLASS/*.JPEG.
Some of the training images, drawn once, are the validation split; ImageNet's own is the test set.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 1000
SIDE = 224

_RESIZED = 256  # the shorter side, before the middle is cut out for a test
_VALIDATION = 10_000  # images at most, and a tenth of what there is
_AREAS = (0.08, 1.0)  # of a crop for training, by the image's
_RATIOS = (3 / 4, 4 / 3)  # of its sides
_ATTEMPTS = 10  # at a crop that lies within the image
_SUFFIXES = (".jpeg", ".jpg", ".png")

Images = NDArray[np.uint8]


class Source(Protocol):
    """Files of images, by number."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, int]:
        """The file's bytes, and the label."""
        ...


class Part(NamedTuple):
    """Some of a source.

    Attributes:
      source: of the files.
      indices: which of them.
      is_trained_on: whether crops are drawn, or the middle is taken.
    """

    source: Source
    indices: NDArray[np.int64]
    is_trained_on: bool

    @property
    def size(self) -> int:
        return len(self.indices)

    def some(self, number: int) -> Part:
        """So many, of all classes, the same each time: a folder has one class after the other."""
        return self._replace(indices=np.random.default_rng(0).permutation(self.indices)[:number])

    def batches(self, size: int) -> Iterator[Batch]:
        """All of it in order; the last one may be smaller."""
        return batches(self._replace(is_trained_on=False), size)


class ImageNet(NamedTuple):
    """Attributes:
    train: for training.
    validation: of the training images, to choose by.
    test: ImageNet's validation images.
    """

    train: Part
    validation: Part
    test: Part


class FolderSource:
    """CLASS/*.JPEG; classes are numbered in the order of their names, or as another source has them."""

    def __init__(self, folder: Path, names: list[str] | None = None) -> None:
        found = sorted(path.name for path in folder.iterdir() if path.is_dir())
        found = [name for name in found if not name.startswith(".")]
        self.names = found if names is None else names
        unknown = set(found) - set(self.names)
        if unknown:
            raise ValueError(f"{folder}: got classes {sorted(unknown)[:5]} that are not trained on")
        classes = [folder / name for name in self.names]
        self.files = [
            (path, label)
            for label, each in enumerate(classes)
            for path in sorted(each.glob("*"))
            if path.suffix.lower() in _SUFFIXES
        ]
        if not self.files:
            raise FileNotFoundError(f"{folder}: no CLASS/*.JPEG in it")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[bytes, int]:
        path, label = self.files[index]
        return path.read_bytes(), label


class RecordSource:
    """Records that tensorflow-datasets prepared, in the array_record format; images are left as they were stored."""

    def __init__(self, folder: Path, split: str) -> None:
        import tensorflow_datasets as tfds  # takes seconds

        from .records import check_format

        builder: Any = tfds.builder_from_directory(folder)
        check_format(builder.info, folder)
        whole = {"image": tfds.decode.SkipDecoding()}
        self._records: Any = builder.as_data_source(split, decoders=whole)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> tuple[bytes, int]:
        record = self._records[index]
        return bytes(record["image"]), int(record["label"])


def open_imagenet(data_dir: str | Path) -> ImageNet:
    """Finds the files; nothing is decoded yet.

    Args:
      data_dir: holds `imagenet2012/<version>/`, or `train/` and `val/`.

    Raises:
      FileNotFoundError: if it holds neither.
      ValueError: for a class in val/ that train/ lacks, or records that cannot be read without TensorFlow.
    """
    root = Path(data_dir).expanduser()
    prepared = sorted(path.parent for path in root.glob("imagenet2012/*/dataset_info.json"))
    if prepared:
        train, test = (RecordSource(prepared[-1], split) for split in ("train", "validation"))
    elif (root / "train").is_dir() and (root / "val").is_dir():
        train = FolderSource(root / "train")
        test = FolderSource(root / "val", train.names)
    else:
        raise FileNotFoundError(
            f"no ImageNet in {root}: looked for imagenet2012/<version>/dataset_info.json, and for train/ and val/"
        )
    order = np.random.default_rng(0).permutation(len(train))
    cut = len(order) - min(_VALIDATION, len(order) // 10)
    return ImageNet(
        Part(train, np.sort(order[:cut]), True),
        Part(train, np.sort(order[cut:]), False),
        Part(test, np.arange(len(test)), False),
    )


class Batch(NamedTuple):
    """Attributes:
    images: [N, 224, 224, 3] uint8.
    labels: [N] int32.
    """

    images: Images
    labels: NDArray[np.int32]


def batches(
    part: Part,
    size: int,
    *,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    side: int = SIDE,
    threads: int = 8,
    ahead: int = 4,
) -> Iterator[Batch]:
    """One epoch. The same seed gives the same batches, whatever the number of threads.

    Args:
      part: of the images. Those to train on come in an order of chance, and what does not fill a batch is left out.
      size: images in a batch, of all processes together.
      seed: of order, crops and flips; another one for each epoch.
      shard: this process and how many there are, as `(jax.process_index(), jax.process_count())`: each has its share of
        every batch.
      side: of the images.
      threads: that decode.
      ahead: batches that are made before they are asked for.

    Raises:
      ValueError: if the processes cannot share a batch; or, naming the image, for one that cannot be decoded.
    """
    place, processes = shard
    if size % processes:
        raise ValueError(f"got batches of {size} for {processes} processes, expected a multiple")
    order = part.indices
    if part.is_trained_on:
        order = np.random.default_rng((seed, 0)).permutation(order)
        order = order[: len(order) // size * size]
    starts = range(0, len(order), size)

    def own(start: int) -> NDArray[np.int64]:
        return order[start : start + size][place::processes]

    def example(index: int) -> tuple[Images, int]:
        return _example(part, int(index), np.random.default_rng((seed, 1, int(index))), side)

    with ThreadPoolExecutor(threads) as pool:
        waiting = [[pool.submit(example, i) for i in own(s)] for s in starts[:ahead]]
        for start in starts:
            found = [future.result() for future in waiting.pop(0)]
            after = start + ahead * size
            if after < len(order):
                waiting.append([pool.submit(example, i) for i in own(after)])
            # The last share of a test may be empty; the other processes' is not.
            images = np.zeros((len(found), side, side, 3), np.uint8)
            for row, (pixels, _) in enumerate(found):
                images[row] = pixels
            yield Batch(images, np.array([label for _, label in found], np.int32))


def _example(part: Part, index: int, draw: np.random.Generator, side: int) -> tuple[Images, int]:
    data, label = part.source.read(index)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            box = crop_of(opened.size, draw) if part.is_trained_on else middle_of(opened.size, side)
            image = opened.convert("RGB").resize((side, side), Image.Resampling.BILINEAR, box)
    except OSError as error:
        raise ValueError(f"image {index}: cannot be decoded: {error}") from error
    pixels = np.asarray(image)
    if part.is_trained_on and draw.random() < 0.5:
        pixels = pixels[:, ::-1]
    return pixels, label


def crop_of(size: Sequence[int], draw: np.random.Generator) -> tuple[float, float, float, float]:
    """left, upper, right, lower of a part of chance: 8 to 100 % of the image, sides as 3 to 4 at most (Szegedy et al., 2014)."""
    width, height = size
    for _ in range(_ATTEMPTS):
        area = width * height * draw.uniform(*_AREAS)
        ratio = np.exp(draw.uniform(*np.log(_RATIOS)))
        w, h = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if w <= width and h <= height:
            left, upper = draw.uniform(0, width - w), draw.uniform(0, height - h)
            return left, upper, left + w, upper + h
    return middle_of(size, _RESIZED)  # as large as it gets


def middle_of(size: Sequence[int], side: int) -> tuple[float, float, float, float]:
    """The square in the middle that `side` pixels show when the shorter side is scaled to 256."""
    width, height = size
    shown = min(width, height) * min(side / _RESIZED, 1)
    left, upper = (width - shown) / 2, (height - shown) / 2
    return left, upper, left + shown, upper + shown
