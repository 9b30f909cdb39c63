"""ImageNet's reading, cropping and sharing out, on images that the tests make."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow_datasets as tfds
from flax import nnx
from PIL import Image

from experiments import data, model, training
from experiments.config import Config
from experiments.data import imagenet


def jpeg(color: tuple[int, int, int], size: tuple[int, int] = (60, 40)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "JPEG")
    return data.getvalue()


def color_of(label: int, index: int) -> tuple[int, int, int]:
    return (40 * label, 6 * index, 90)


def write_folder(root: Path, images: int = 12) -> Path:
    for split, count in (("train", images), ("val", 3)):
        for label in range(3):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index:02d}.JPEG").write_bytes(jpeg(color_of(label, index)))
    return root


@pytest.fixture
def found(tmp_path: Path) -> imagenet.ImageNet:
    return imagenet.open_imagenet(write_folder(tmp_path))


def all_of(part: imagenet.Part, size: int, **options: Any) -> list[imagenet.Batch]:
    return list(imagenet.batches(part, size, side=32, threads=2, **options))


def test_splits_are_apart_and_all_there_is(found: imagenet.ImageNet):
    train, validation = found.train.indices, found.validation.indices
    assert len(validation) == 3
    assert sorted([*train, *validation]) == list(range(36))
    assert list(found.test.indices) == list(range(9))


def test_an_image_comes_with_its_label(found: imagenet.ImageNet):
    for part in found:
        for images, labels in all_of(part, 3):
            assert images.shape == (3, 32, 32, 3)
            assert images.dtype == np.uint8
            np.testing.assert_allclose(images[..., 0].mean((1, 2)), 40 * labels, atol=4)


def test_some_images_are_of_all_classes(found: imagenet.ImageNet):
    some, again = found.train.some(12), found.train.some(12)
    assert set(some.indices) < set(found.train.indices)
    np.testing.assert_array_equal(some.indices, again.indices)
    [batch] = all_of(some._replace(is_trained_on=False), 12)
    assert set(batch.labels.tolist()) == {0, 1, 2}


def test_an_epoch_is_the_same_whatever_the_threads_and_another_seed_is_not(
    found: imagenet.ImageNet,
):
    one = all_of(found.train, 8, seed=1)
    again = list(imagenet.batches(found.train, 8, seed=1, side=32, threads=1, ahead=1))
    other = all_of(found.train, 8, seed=2)
    assert len(one) == 4  # of 33 images
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
    assert any((a.labels != b.labels).any() for a, b in zip(one, other, strict=True))


def test_processes_share_each_batch(found: imagenet.ImageNet):
    whole = all_of(found.test, 4)
    parts = [all_of(found.test, 4, shard=(i, 2)) for i in range(2)]
    assert [len(batch.labels) for batch in whole] == [4, 4, 1]
    for i, part in enumerate(parts):
        for batch, own in zip(whole[:2], part, strict=False):
            np.testing.assert_array_equal(own.images, batch.images[i::2])
    with pytest.raises(ValueError, match="batches of 3 for 2 processes"):
        all_of(found.test, 3, shard=(0, 2))


def test_crops_lie_within_the_image():
    draw = np.random.default_rng(0)
    for size in ((500, 375), (30, 2000), (1, 1)):
        for _ in range(200):
            left, upper, right, lower = imagenet.crop_of(size, draw)
            assert 0 <= left < right <= size[0] + 1e-9
            assert 0 <= upper < lower <= size[1] + 1e-9
            if size == (500, 375):
                area = (right - left) * (lower - upper) / (500 * 375)
                assert 0.08 - 1e-9 <= area <= 1 + 1e-9


def test_a_test_image_is_the_middle():
    assert imagenet.middle_of((512, 256), 224) == (144, 16, 368, 240)
    assert imagenet.middle_of((128, 256), 224) == (8, 72, 120, 184)
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[16:240, 16:240] = 200
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")

    class One:
        def __len__(self) -> int:
            return 1

        def read(self, index: int) -> tuple[bytes, int]:
            return data.getvalue(), index

    [batch] = imagenet.batches(imagenet.Part(One(), np.arange(1), False), 1)
    assert (batch.images == 200).all()


def test_a_damaged_image_is_named(tmp_path: Path):
    write_folder(tmp_path)
    (tmp_path / "val" / "n00000001" / "01.JPEG").write_bytes(b"no image")
    with pytest.raises(ValueError, match="image 4: cannot be decoded"):
        all_of(imagenet.open_imagenet(tmp_path).test, 3)


def test_classes_are_numbered_alike_in_both_folders(tmp_path: Path):
    write_folder(tmp_path)
    for file in (tmp_path / "val" / "n00000001").iterdir():
        file.unlink()
    (tmp_path / "val" / "n00000001").rmdir()
    (tmp_path / "val" / ".hidden").mkdir()
    found = imagenet.open_imagenet(tmp_path)
    assert {label for batch in all_of(found.test, 6) for label in batch.labels} == {0, 2}
    (tmp_path / "val" / "n9").mkdir()
    with pytest.raises(ValueError, match=r"\['n9'\] that are not trained on"):
        imagenet.open_imagenet(tmp_path)


def test_no_imagenet_is_told(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="looked for imagenet2012/"):
        imagenet.open_imagenet(tmp_path)
    (tmp_path / "train" / "n0").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no CLASS/\*\.JPEG"):
        imagenet.open_imagenet(tmp_path)


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Of the official name and features."""

    name = "imagenet2012"
    VERSION = tfds.core.Version("5.1.0")
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> Any:
        del dl_manager
        return {"train": self._generate_examples(12), "validation": self._generate_examples(3)}

    def _generate_examples(self, count: int = 0) -> Any:
        for label in range(3):
            for index in range(count):
                name = f"{label}-{index}"
                image = io.BytesIO(jpeg(color_of(label, index)))
                yield name, {"file_name": name, "image": image, "label": label}


def test_records_of_tensorflow_datasets(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tfds.disable_progress_bar()
    builder = Imagenet2012(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    capsys.readouterr()
    found = imagenet.open_imagenet(tmp_path)
    assert (len(found.train.indices), len(found.validation.indices)) == (33, 3)
    for images, labels in all_of(found.test, 3):
        np.testing.assert_allclose(images[..., 0].mean((1, 2)), 40 * labels, atol=4)
    (info,) = tmp_path.glob("imagenet2012/*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for path in info.parent.glob("*.array_record-*"):
        path.rename(str(path).replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r'tfrecord.*file_format="array_record"'):
        imagenet.open_imagenet(tmp_path)


class Tiny(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.linear(jnp.mean(images, axis=(1, 2)))


def test_a_streamed_epoch_on_eight_devices_is_that_of_one(tmp_path: Path):
    dataset = data.load("imagenet", write_folder(tmp_path, 6))
    assert isinstance(dataset.train, data.Part)
    net = model.Model(*nnx.split(Tiny(nnx.Rngs(0)), nnx.Param, nnx.BatchStat))
    settings = Config(dataset="imagenet", ratio=8, batch_size=8)
    optimizer = optax.chain(optax.sgd(0.1, momentum=0.9))
    key = jax.random.key(0)

    def start() -> training.Trained:
        params = jax.tree.map(jnp.copy, net.params)
        return training.Trained(params, net.statistics, optimizer.init(params))

    run = training.streamed_epoch_function(net, dataset, settings, optimizer)
    got, loss = run(start(), dataset.train, 5, key)
    step = jax.jit(training.step_function(net, dataset, settings, optimizer))
    expected, losses = start(), []
    for i, batch in enumerate(imagenet.batches(dataset.train, 8, seed=5)):
        expected, value = step(expected, *map(jnp.asarray, batch), jax.random.fold_in(key, i))
        losses.append(float(value))
    assert len(losses) == 2
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    for a, b in zip(jax.tree.leaves(got.params), jax.tree.leaves(expected.params), strict=True):
        assert len(a.sharding.device_set) == 8
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    share = model.accuracy(net, net.variables, dataset, dataset.test)
    assert 0 <= share <= 1
    assert (share * 9) % 1 == pytest.approx(0, abs=1e-9)
    assert dataset.with_train_images(4).train.size == 4
    with pytest.raises(ValueError, match="batches of 9 for 8 devices"):
        training.streamed_epoch_function(
            net, dataset, Config(dataset="imagenet", ratio=8, batch_size=9), optimizer
        )
