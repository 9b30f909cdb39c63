"""Finds a data set, loads it, splits off the validation images."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from . import imagenet
from .cache import cache_dir, cached_splits
from .cifar_binary import read_cifar10
from .dataset import Dataset, Split
from .idx import read_mnist

_VALIDATION_IMAGES = 5_000
_EMBEDDED_MNIST = Path(__file__).parent / "mnist"
_CIFAR_BINARY = "cifar-10-batches-bin"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What is known of a data set before it is loaded."""

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int = 10


_KNOWN = {
    "mnist": _Facts(image_shape=(28, 28, 1), mean=(0.1307,), std=(0.3081,)),
    "cifar10": _Facts(
        image_shape=(32, 32, 3), mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)
    ),
}


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Loads a data set; validation is the last 5,000 training images. "imagenet" is only opened: see `imagenet.open_imagenet`.

    `data_dir` is only read. It holds the data set as tensorflow-datasets prepares it in the
    array_record format (`mnist/3.0.1/`, `cifar10/3.0.2/`; the highest version is taken), or, for
    "cifar10", the folder `cifar-10-batches-bin/` of the data set's binary layout, which goes first.

    Without `data_dir`, "mnist" comes from the files in this repository, which are prepared with
    tensorflow-datasets on first use; "cifar10" is looked for in TFDS's own directory,
    `$TFDS_DATA_DIR` or else `~/tensorflow_datasets`.

    Prepared MNIST and decoded records are kept in `$XDG_CACHE_HOME/jpq_jax`, by default
    `~/.cache/jpq_jax`, which may be deleted at any time. No network is used.

    The order, and with it the validation split, is the original data set's, except for an MNIST
    that TFDS shuffled: there it is TFDS's.

    Args:
      name: "mnist", "cifar10" or "imagenet".
      data_dir: where the data set is.

    Raises:
      FileNotFoundError: there is no such directory, or it has no such data set.
      ValueError: unknown name, or data that is damaged, altered or not readable.
    """
    if name == "imagenet":
        train, validation, test = imagenet.open_imagenet(_existing(data_dir))
        return Dataset(
            name=name,
            train=train,
            validation=validation,
            test=test,
            num_classes=imagenet.CLASSES,
            mean=imagenet.MEAN,
            std=imagenet.STD,
        )
    if name not in _KNOWN:
        raise ValueError(f"unknown data set {name!r}, known are: {', '.join(_KNOWN)}, imagenet")
    facts, splits = _KNOWN[name], _load_splits(name, data_dir)
    train, validation = _split_off_validation(splits["train"])
    return Dataset(
        name=name,
        train=train,
        validation=validation,
        test=splits["test"],
        num_classes=facts.num_classes,
        mean=facts.mean,
        std=facts.std,
    )


def _load_splits(name: str, data_dir: str | Path | None) -> dict[str, Split]:
    if data_dir is None and name == "mnist":
        return _read_prepared(name, _prepared_mnist())
    root = _existing(data_dir)
    if name == "cifar10" and (root / _CIFAR_BINARY).is_dir():
        return read_cifar10(root / _CIFAR_BINARY)
    folder = _find_prepared(root, name)
    if folder is None:
        raise FileNotFoundError(_not_found(root, name))
    return _read_prepared(name, folder)


def _split_off_validation(train: Split) -> tuple[Split, Split]:
    images, labels = train
    if len(labels) <= _VALIDATION_IMAGES:
        raise ValueError(
            f"there are {len(labels)} training images, expected more than the "
            f"{_VALIDATION_IMAGES} of the validation split"
        )
    cut = len(labels) - _VALIDATION_IMAGES
    return Split(images[:cut], labels[:cut]), Split(images[cut:], labels[cut:])


def _existing(data_dir: str | Path | None) -> Path:
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"the data directory {root} does not exist or is no directory")
    return root


def _find_prepared(root: Path, name: str) -> Path | None:
    """The highest version of `name` that TFDS prepared in `root`."""
    folders = [
        path.parent
        for path in root.glob(f"{name}/*/dataset_info.json")
        if _VERSION.fullmatch(path.parent.name)
    ]
    return max(folders, key=_version, default=None)


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(map(int, folder.name.split(".")))


def _not_found(root: Path, name: str) -> str:
    looked_for = [f"{name}/<version>/dataset_info.json (records prepared by tensorflow-datasets)"]
    if name == "cifar10":
        looked_for.append(f"{_CIFAR_BINARY}/ (the data set's binary layout)")
    found = sorted(path.name for path in root.iterdir())[:10]
    return (
        f"no {name} in the data directory {root}: looked for {' and '.join(looked_for)}, "
        f"found {', '.join(found) or 'nothing'}"
    )


def _prepared_mnist() -> Path:
    root = cache_dir() / "tensorflow_datasets"
    folder = _find_prepared(root, "mnist")
    if folder is None:
        # Imported only here and below: it takes longer than the second load altogether.
        from .records import prepare_mnist

        folder = prepare_mnist(read_mnist(_EMBEDDED_MNIST), root)
    return folder


def _read_prepared(name: str, folder: Path) -> dict[str, Split]:
    shape = _KNOWN[name].image_shape

    def decode() -> dict[str, Split]:
        from .records import read_records

        return read_records(folder, shape)

    return cached_splits(folder, shape, decode)
