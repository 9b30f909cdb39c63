"""Data sets, read back against independent readers; names, directories and files that are wrong."""

import gzip
import hashlib
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments import data
from experiments.data import cache, idx, records

REPOSITORY = Path(__file__).parents[1]
EMBEDDED = REPOSITORY / "experiments" / "data" / "mnist"
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@pytest.fixture(autouse=True, scope="module")
def surroundings():
    """No TFDS directory, no network."""

    def refuse(*args):
        raise AssertionError(f"tried to connect to {args[1:]}")

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TFDS_DATA_DIR", raising=False)
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(scope="module")
def mnist(surroundings):
    return data.load("mnist")


# MNIST


def idx_bytes(name):
    content = gzip.decompress((EMBEDDED / f"{name}.gz").read_bytes())
    assert hashlib.md5(content).hexdigest() == MD5[name]
    return content


def test_mnist_has_the_bytes_and_the_order_of_the_idx_files(mnist):
    for prefix, splits in (("train", (mnist.train, mnist.validation)), ("t10k", (mnist.test,))):
        images = b"".join(split.images.tobytes() for split in splits)
        assert images == idx_bytes(f"{prefix}-images-idx3-ubyte")[16:]
        labels = b"".join(split.labels.astype(np.uint8).tobytes() for split in splits)
        assert labels == idx_bytes(f"{prefix}-labels-idx1-ubyte")[8:]


def test_mnist_sizes_and_types(mnist):
    assert [len(s.labels) for s in (mnist.train, mnist.validation, mnist.test)] == [
        55_000,
        5_000,
        10_000,
    ]
    for split in (mnist.train, mnist.validation, mnist.test):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        assert split.images.shape == (len(split.labels), 28, 28, 1)
        assert set(split.labels) == set(range(mnist.num_classes))
    assert mnist.name == "mnist"
    assert mnist.train.images.mean() / 255 == pytest.approx(mnist.mean[0], abs=2e-4)
    assert mnist.train.images.std() / 255 == pytest.approx(mnist.std[0], abs=2e-4)


def test_second_load_reads_the_cache_only(mnist, monkeypatch, capfd):
    def fail(*args):
        raise AssertionError(f"called with {args}")

    for name in ("prepare_mnist", "read_records"):
        monkeypatch.setattr(records, name, fail)
    again = data.load("mnist")
    np.testing.assert_array_equal(again.test.images, mnist.test.images)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("mnist")
def test_second_load_does_not_import_tfds():
    code = "import experiments.data as d, sys; d.load('mnist'); print(sorted(sys.modules))"
    modules = subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY, text=True)
    assert "experiments.data" in modules
    assert "tensorflow_datasets" not in modules


def test_tfds_itself_reads_what_was_prepared(mnist):
    root = cache.cache_dir() / "tensorflow_datasets"
    # The official builder of "mnist", so the features are the official ones.
    source = tfds.data_source("mnist", data_dir=root, split="test", download=False)
    np.testing.assert_array_equal(source[17]["image"], mnist.test.images[17])
    assert source[17]["label"] == mnist.test.labels[17]


# CIFAR-10 in its binary layout


@pytest.fixture
def cifar_folder(tmp_path):
    """Five files of 1,010 and one of 30 random records."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for number, count in enumerate([1_010] * 5 + [30], start=1):
        content = rng.integers(0, 256, (count, 3_073), np.uint8)
        content[:, 0] %= 10
        name = f"data_batch_{number}.bin" if number < 6 else "test_batch.bin"
        (folder / name).write_bytes(content.tobytes())
    return folder


def pixel(folder, name, record, row, column):
    content, start = (folder / name).read_bytes(), record * 3_073 + 1 + 32 * row + column
    return [content[start + 1_024 * plane] for plane in range(3)]


def test_cifar10_binary_layout(cifar_folder):
    cifar10 = data.load("cifar10", cifar_folder.parent)
    assert cifar10.train.images.shape == (50, 32, 32, 3)
    assert cifar10.validation.images.shape == (5_000, 32, 32, 3)
    assert cifar10.test.images.shape == (30, 32, 32, 3)
    assert (cifar10.num_classes, len(cifar10.mean), len(cifar10.std)) == (10, 3, 3)
    for images, name, record in (
        (cifar10.train.images[49], "data_batch_1.bin", 49),
        (cifar10.validation.images[0], "data_batch_1.bin", 50),
        (cifar10.validation.images[-1], "data_batch_5.bin", 1_009),
        (cifar10.test.images[7], "test_batch.bin", 7),
    ):
        for row, column in ((0, 0), (3, 30), (31, 31)):
            got = images[row, column].tolist()
            assert got == pixel(cifar_folder, name, record, row, column)
    labels = [(cifar_folder / "test_batch.bin").read_bytes()[3_073 * i] for i in range(30)]
    assert cifar10.test.labels.tolist() == labels
    assert cifar10.test.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (bytes(3_072), "truncated.*3072 bytes, expected a multiple of 3073"),
        (bytes([10] + [0] * 3_072), "altered.*label 10, expected 0 to 9"),
    ],
)
def test_bad_cifar10_file_is_named(cifar_folder, content, message):
    (cifar_folder / "data_batch_4.bin").write_bytes(content)
    with pytest.raises(ValueError, match=f"data_batch_4.bin is .*{message}"):
        data.load("cifar10", cifar_folder.parent)


def test_missing_cifar10_file_is_named(cifar_folder):
    (cifar_folder / "test_batch.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_batch\.bin"):
        data.load("cifar10", cifar_folder.parent)


# Names, directories and files that are wrong


def test_unknown_name():
    with pytest.raises(ValueError, match="'imagenette', known are: mnist, cifar10"):
        data.load("imagenette")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_directory(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        data.load(name, tmp_path / "nowhere")


def test_directory_without_the_data_set(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"looked for mnist/<version>.*found nothing"):
        data.load("mnist", tmp_path)
    (tmp_path / "data_batch_1.bin").touch()
    with pytest.raises(
        FileNotFoundError, match=r"cifar10/<version>.* cifar-10-batches-bin/.*found data_batch_1"
    ):
        data.load("cifar10", tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"no cifar10 in the data directory {tmp_path}"):
        data.load("cifar10")


@pytest.mark.parametrize(
    "alter",
    [
        lambda content: content[:-100],
        lambda content: content[:1_000] + bytes([255 - content[1_000]]) + content[1_001:],
        lambda content: gzip.compress(gzip.decompress(content)[:-1]),
        gzip.decompress,
    ],
    ids=["truncated", "damaged", "altered", "uncompressed"],
)
def test_bad_idx_file_is_named(tmp_path, alter):
    for path in EMBEDDED.glob("*.gz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = tmp_path / "t10k-labels-idx1-ubyte.gz"
    bad.write_bytes(alter(bad.read_bytes()))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz is (truncated or )?altered"):
        idx.read_mnist(tmp_path)
    bad.unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels"):
        idx.read_mnist(tmp_path)
