"""Records prepared by tensorflow-datasets: writes those of MNIST, reads those of any data set here.

TensorFlow isn't needed: records are in the array_record format, images are PNG.
"""

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from google.protobuf.json_format import ParseError
from PIL import Image

from .dataset import Split

_BLOCK = 1_000  # records read at once


class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The official `mnist` data set, from arrays, in their order.

    The official builder decodes and encodes through TensorFlow, and shuffles. It isn't registered,
    so that it leaves `tfds.load("mnist")` alone.
    """

    VERSION = tfds.core.Version("3.0.1")
    # Nothing is downloaded. Else TFDS looks for this package's table of checksums, and needs
    # importlib_resources for it, which it doesn't depend on.
    url_infos = None

    def __init__(self, splits: Mapping[str, Split], **kwargs: Any) -> None:
        self._source = splits
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The MNIST database of handwritten digits.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://yann.lecun.com/exdb/mnist/",
            license="CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # nothing is downloaded
        return {name: self._generate_examples(split) for name, split in self._source.items()}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(*split, strict=True)):
            png = io.BytesIO()
            Image.fromarray(image[..., 0]).save(png, "PNG", compress_level=1)
            png.seek(0)
            yield index, {"image": png, "label": int(label)}


def prepare_mnist(splits: Mapping[str, Split], root: Path) -> Path:
    """Writes `splits`, of images [N, 28, 28, 1], as the records `root/mnist/3.0.1`.

    They appear there complete or not at all: they are written to a directory of their own, which
    is then renamed. If another process was first, its records are kept.

    Returns:
      The records' folder.
    """
    sys.stderr.write(f"preparing mnist in {root} (once, about 10 s)\n")
    tfds.disable_progress_bar()
    root.mkdir(parents=True, exist_ok=True)
    # TFDS does the same, but draws its directory's name from `random`: two processes that seed it
    # alike would write into one directory.
    with tempfile.TemporaryDirectory(dir=root, prefix="preparing-") as scratch:
        builder = Mnist(splits, data_dir=scratch, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # "Downloading", which it does not
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
        folder = root / "mnist" / str(builder.version)
        _publish(Path(builder.data_dir), folder)
    return folder


def _publish(scratch: Path, folder: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    try:
        scratch.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def read_records(folder: Path, image_shape: tuple[int, ...]) -> dict[str, Split]:
    """Decodes the "train" and "test" records that TFDS prepared in `folder`.

    In the order of the records, or of the feature "id" if there is one: the official CIFAR-10
    numbers its images there as in the original data set, while its records are shuffled.

    Args:
      folder: `.../<name>/<version>`.
      image_shape: [H, W, C] that the images must have.

    Raises:
      ValueError: TensorFlow would be needed to read the records, they are damaged, or they aren't
        images of that shape with labels.
    """
    sys.stderr.write(f"decoding {folder} (once, a few seconds)\n")
    try:
        builder = tfds.builder_from_directory(folder)
        _check_contents(builder.info, folder, image_shape)
        return {split: _decode(builder, split) for split in ("train", "test")}
    except (RuntimeError, ParseError) as error:
        raise ValueError(f"the records in {folder} are damaged or missing: {error}") from error


# `Any` stands for builders and their parts: TFDS's types don't tell that features are a mapping.
def check_format(info: Any, folder: Path) -> None:
    """Raises ValueError if TensorFlow would be needed to read the records."""
    if not info.available_file_formats() & tfds.core.FileFormat.with_random_access():
        raise ValueError(
            f"{folder} holds records in the format {info.file_format.value}, which cannot be read "
            "without TensorFlow. Where TensorFlow is installed, prepare them again in another "
            f"directory: tfds.builder({info.name!r}, data_dir=DIRECTORY, "
            'file_format="array_record").download_and_prepare()'
        )


def _check_contents(info: Any, folder: Path, image_shape: tuple[int, ...]) -> None:
    check_format(info, folder)
    features, splits = info.features, set(info.splits)
    if not {"train", "test"} <= splits:
        raise ValueError(f'{folder} has the splits {sorted(splits)}, expected "train" and "test"')
    if not {"image", "label"} <= set(features):
        raise ValueError(
            f'{folder} has the features {sorted(features)}, expected "image" and "label"'
        )
    if features["image"].shape != image_shape:
        raise ValueError(
            f"{folder} has images of shape {features['image'].shape}, expected {image_shape}"
        )


def _decode(builder: Any, split: str) -> Split:
    source = builder.as_data_source(split)
    images = np.empty((len(source), *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    ids = []
    with _quiet_absl():
        for row, record in enumerate(_records(source)):
            images[row] = record["image"]
            labels[row] = record["label"]
            ids.append(record.get("id"))
    if "id" in builder.info.features:
        order = np.argsort(ids)
        images, labels = images[order], labels[order]
    return Split(images, labels)


def _records(source: Any) -> Iterator[dict[str, Any]]:
    for start in range(0, len(source), _BLOCK):
        yield from source.__getitems__(range(start, min(start + _BLOCK, len(source))))


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Without the advice to install OpenCV, which TFDS prefers to Pillow for its speed."""
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
