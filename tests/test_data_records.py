"""Records: prepared from MNIST, prepared by the user, and the cache of what they decode to."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments import data
from experiments.data import cache, loading, records

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def random_split(seed, count, shape=(28, 28, 1)):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    return data.Split(images, rng.integers(0, 10, count).astype(np.int32))


def assert_same(dataset, train, test):
    """`dataset` is `train`, cut 5,000 images before its end, and `test`."""
    for field in ("images", "labels"):
        got = [getattr(split, field) for split in (dataset.train, dataset.validation)]
        np.testing.assert_array_equal(got[0], getattr(train, field)[:-5000])
        np.testing.assert_array_equal(got[1], getattr(train, field)[-5000:])
        np.testing.assert_array_equal(getattr(dataset.test, field), getattr(test, field))


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# Preparation


def test_preparing_twice_keeps_the_first(tmp_path):
    first, second = ({"train": random_split(s, 9), "test": random_split(s, 3)} for s in (0, 1))
    folder = records.prepare_mnist(first, tmp_path)
    assert records.prepare_mnist(second, tmp_path) == folder
    read = records.read_records(folder, (28, 28, 1))
    np.testing.assert_array_equal(read["train"].images, first["train"].images)
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]


def test_failed_preparation_leaves_nothing(tmp_path):
    uneven = data.Split(random_split(0, 9).images, np.zeros(8, np.int32))
    with pytest.raises(ValueError, match="shorter"):
        records.prepare_mnist({"train": random_split(0, 9), "test": uneven}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_killed_preparation_is_started_afresh(tmp_path):
    root = tmp_path / "jpq_jax" / "tensorflow_datasets"
    process = subprocess.Popen(
        [sys.executable, "-c", "import experiments.data as d; d.load('mnist')"],
        cwd=REPOSITORY,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not list(root.glob("preparing-*/mnist/incomplete*")):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert list(root.glob("preparing-*"))
    assert loading._find_prepared(root, "mnist") is None
    folder = records.prepare_mnist({"train": random_split(0, 9), "test": random_split(1, 3)}, root)
    assert loading._find_prepared(root, "mnist") == folder


# The cache of decoded splits


@pytest.fixture
def decoding(tmp_path):
    """Makes `cached_splits` of some records, and counts how often they were decoded."""
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "records").write_bytes(b"12")
    splits, calls = {"train": random_split(0, 7), "test": random_split(1, 3)}, []

    def read(shape=(28, 28, 1)):
        got = cache.cached_splits(folder, shape, lambda: calls.append(1) or splits)
        np.testing.assert_array_equal(got["train"].images, splits["train"].images)
        np.testing.assert_array_equal(got["test"].labels, splits["test"].labels)
        return len(calls)

    read.folder = folder
    return read


def test_decoded_once(decoding):
    assert [decoding(), decoding()] == [1, 1]


def test_decoded_again_when_the_records_changed(decoding):
    decoding()
    (decoding.folder / "records").write_bytes(b"123")
    assert decoding() == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[:3_000],
        lambda content: content[:3_000] + bytes([content[3_000] ^ 1]) + content[3_001:],
    ],
    ids=["emptied", "truncated", "one bit"],
)
def test_decoded_again_when_the_cache_is_damaged(decoding, damage):
    decoding()
    (path,) = cache.cache_dir().rglob("*.npz")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert decoding() == 2
    assert path.read_bytes() == whole
    assert [other for other in path.parent.iterdir() if other != path] == []


def test_decoded_again_when_the_cached_shape_is_wrong(decoding):
    decoding()
    assert decoding(shape=(14, 56, 1)) == 2


# Data of the user's own, prepared by TFDS


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Like the official one: records shuffled, and numbered in the feature "id"."""

    VERSION = tfds.core.Version("3.0.2")
    url_infos = None

    def __init__(self, splits, **kwargs):
        self.source = splits
        super().__init__(**kwargs)

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=self.source["train"].images.shape[1:]),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {name: self._generate_examples(name) for name in self.source}

    def _generate_examples(self, name):
        for index, (image, label) in enumerate(zip(*self.source[name], strict=True)):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG", compress_level=1)
            png.seek(0)
            yield index, {"id": f"{name}_{index:05d}", "image": png, "label": int(label)}


def prepare_cifar10(root, train, test):
    builder = Cifar10({"train": train, "test": test}, data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return root / "cifar10" / "3.0.2"


def test_mnist_from_a_data_dir(tmp_path):
    train, test = random_split(0, 5_010), random_split(1, 20)
    records.prepare_mnist({"train": train, "test": test}, tmp_path)
    before = files_of(tmp_path)
    assert_same(data.load("mnist", str(tmp_path)), train, test)
    assert files_of(tmp_path) == before


def test_shuffled_cifar10_comes_in_the_order_of_its_ids(tmp_path, monkeypatch):
    train, test = random_split(0, 5_010, (32, 32, 3)), random_split(1, 20, (32, 32, 3))
    folder = prepare_cifar10(tmp_path, train, test)
    first = tfds.builder_from_directory(folder).as_data_source("train")[0]["image"]
    assert not np.array_equal(first, train.images[0])
    assert_same(data.load("cifar10", tmp_path), train, test)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert_same(data.load("cifar10"), train, test)


def test_highest_version_is_taken(tmp_path):
    for version in ("3.0.2", "3.0.10", "1.0.0", "9.9.9.incomplete"):
        (tmp_path / "mnist" / version).mkdir(parents=True)
        (tmp_path / "mnist" / version / "dataset_info.json").touch()
    assert loading._find_prepared(tmp_path, "mnist").name == "3.0.10"


@pytest.fixture
def prepared(tmp_path):
    return records.prepare_mnist(
        {"train": random_split(0, 9), "test": random_split(1, 3)}, tmp_path
    )


def test_tfrecords_are_refused_with_the_way_out(prepared):
    info = prepared / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    for path in prepared.glob("*.array_record-*"):
        path.rename(str(path).replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r'tfrecord.*TensorFlow.*file_format="array_record"'):
        data.load("mnist", prepared.parents[1])


def damage_shard(folder):
    path = folder / "mnist-train.array_record-00000-of-00001"
    path.write_bytes(path.read_bytes()[:-70_000])


def remove_shard(folder):
    (folder / "mnist-test.array_record-00000-of-00001").unlink()


def damage_info(folder):
    (folder / "dataset_info.json").write_text("{")


@pytest.mark.parametrize("damage", [damage_shard, remove_shard, damage_info])
def test_damaged_records_are_refused(prepared, damage):
    damage(prepared)
    with pytest.raises(ValueError, match="damaged or missing") as raised:
        data.load("mnist", prepared.parents[1])
    assert str(prepared) in str(raised.value)


def test_other_data_under_the_name_is_refused(tmp_path, prepared):
    info = prepared / "dataset_info.json"
    info.write_text(info.read_text().replace('"test"', '"dev"'))
    with pytest.raises(ValueError, match=r"splits \['dev', 'train'\], expected"):
        data.load("mnist", tmp_path)
    small = random_split(0, 9, (16, 16, 3))
    prepare_cifar10(tmp_path, small, small)
    with pytest.raises(ValueError, match=r"shape \(16, 16, 3\), expected \(32, 32, 3\)"):
        data.load("cifar10", tmp_path)


def test_features_are_checked(prepared):
    features = prepared / "features.json"
    features.write_text(features.read_text().replace('"label"', '"digit"'))
    with pytest.raises(ValueError, match=r"features \['digit', 'image'\], expected"):
        data.load("mnist", prepared.parents[1])


def test_too_few_training_images(prepared):
    with pytest.raises(ValueError, match="9 training images, expected more than the 5000"):
        data.load("mnist", prepared.parents[1])
