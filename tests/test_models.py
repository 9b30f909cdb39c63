"""The models and their training: the paper's weights, PyTorch's outputs from NumPy, epochs, presets, schedules."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import files
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import save_file

import jpq_jax
from experiments import config as configuration
from experiments import model, stages, training
from experiments.config import ModelName
from experiments.data import Dataset, Split
from experiments.models.convolution import convolved, convolved_and_pooled
from experiments.models.mobilenet import SeparableConvolution
from experiments.models.pytorch_weights import _KINDS, _NAMES, load_pytorch


def test_lenet5_has_the_papers_weights() -> None:
    lenet = model.build("lenet5", seed=0)
    plan = jpq_jax.plan_leaves(lenet.params)
    sizes = [leaf.size for leaf in jax.tree.leaves(lenet.params)]
    assert sum(size for size, p in zip(sizes, plan, strict=True) if p.compress) == 430_500
    assert sum(sizes) == 431_080


def test_resnet20_has_the_papers_weights() -> None:
    resnet = model.build("resnet20", seed=0)
    plan = jpq_jax.plan_leaves(resnet.variables)
    leaves = jpq_jax.leaves_with_paths(resnet.variables)
    assert sum(w.size for (_, w), p in zip(leaves, plan, strict=True) if p.compress) == 268_336
    assert {path.rsplit("/")[-1] for path, _ in jpq_jax.leaves_with_paths(resnet.statistics)} == {
        "mean",
        "var",
    }


WEIGHTS = {
    "lenet300": (266_200, 266_610),
    "resnet50": (25_502_912, 25_557_032),
    "resnet50_cifar10": (23_467_712, 23_520_842),
    "alexnet": (61_090_496, 61_100_840),
    "vgg16": (138_344_128, 138_357_544),
    "vgg16_cifar10": (14_715_584, 14_728_266),
    "mobilenet": (4_209_088, 4_231_976),
}


def test_a_model_with_depthwise_convolutions_takes_fewer_channels() -> None:
    class Two(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.first = SeparableConvolution(3, 8, 2, rngs=rngs)
            self.second = SeparableConvolution(8, 5, 1, rngs=rngs)

        def __call__(self, images: jax.Array) -> jax.Array:
            return jnp.mean(self.second(self.first(images)), axis=(1, 2))

    two = model.Model(*nnx.split(Two(nnx.Rngs(0)), nnx.Param, nnx.BatchStat))
    variables, images = two.variables, jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    variables["first"]["pointwise"]["kernel"][...] *= (jnp.arange(8.0) % 2)[None, None, None]
    shrunk = jpq_jax.shrink(two.logits, variables, images[:1])
    small = model.refilled(two, shrunk.params)
    assert small.params["second"]["depthwise"]["kernel"].shape == (3, 3, 1, 4)
    expected = two.logits(variables, images)
    np.testing.assert_allclose(small.logits(small.variables, images), expected, atol=1e-5)


@pytest.mark.parametrize("name", WEIGHTS)
def test_models_have_the_published_weights(name: ModelName) -> None:
    shapes = jax.eval_shape(lambda: model.build(name, seed=0).params)
    plan = jpq_jax.plan_leaves(shapes)
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes)]
    counted = sum(size for size, p in zip(sizes, plan, strict=True) if p.compress)
    assert (counted, sum(sizes)) == WEIGHTS[name]


@pytest.mark.parametrize(
    ("name", "side", "classes"),
    [
        ("lenet300", 28, 10),
        ("resnet50", 224, 1000),
        ("resnet50_cifar10", 32, 10),
        ("alexnet", 224, 1000),
        ("vgg16", 224, 1000),
        ("vgg16_cifar10", 32, 10),
        ("mobilenet", 224, 1000),
    ],
)
def test_models_see_images_and_are_trained(name: ModelName, side: int, classes: int) -> None:
    def losses(key: jax.Array) -> jax.Array:
        net = model.build(name, seed=0)
        images = jnp.zeros((2, side, side, 1 if side == 28 else 3))

        def loss(params: Any) -> jax.Array:
            logits, _ = net.seen(params, net.statistics, images, key)
            assert logits.shape == (2, classes)
            return jnp.sum(logits)

        return jax.grad(loss)(net.params)

    gradients = jax.eval_shape(losses, jax.random.key(0))
    assert len(jax.tree.leaves(gradients)) > 5


def torch_tensors(name: ModelName) -> dict[str, np.ndarray]:
    """Zeros of PyTorch's shapes under its names, from ours."""
    net = jax.eval_shape(lambda: model.build(name, seed=0).variables)
    tensors = {}
    for place, leaf in jpq_jax.leaves_with_paths(net):
        layer, _, kind = place.rpartition("/")
        turned = tuple(leaf.shape[i] for i in {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim])
        tensors[f"{_NAMES[name][layer]}.{_KINDS[kind]}"] = np.zeros(turned, np.float32)
    return tensors


# A name of torchvision's, or of the checkpoint that MobileNet's are after, and its shape.
THEIRS = {
    "lenet300": ("fc2.weight", (100, 300)),
    "resnet50": ("layer3.5.bn3.running_var", (1024,)),
    "resnet50_cifar10": ("layer2.0.downsample.0.weight", (512, 256, 1, 1)),
    "alexnet": ("classifier.1.weight", (4096, 9216)),
    "vgg16": ("features.28.weight", (512, 512, 3, 3)),
    "vgg16_cifar10": ("features.41.running_mean", (512,)),
    "mobilenet": ("model.13.0.weight", (1024, 1, 3, 3)),
}


@pytest.mark.parametrize("name", THEIRS)
def test_pytorchs_names_lead_to_each_leaf(name: ModelName) -> None:
    tensors = torch_tensors(name)
    theirs, shape = THEIRS[name]
    assert tensors[theirs].shape == shape
    net = jax.eval_shape(lambda: model.build(name, seed=0).variables)
    assert len(tensors) == len(jax.tree.leaves(net))


def torch_resnet_layout(draw: np.random.Generator) -> dict[str, np.ndarray]:
    """PyTorch's names and layouts, as its state dict has them."""
    tensors = {"linear.weight": draw.normal(size=(10, 64)), "linear.bias": draw.normal(size=10)}

    def norm(name: str, width: int) -> None:
        for kind in ("weight", "bias", "running_mean"):
            tensors[f"{name}.{kind}"] = draw.normal(size=width)
        tensors[f"{name}.running_var"] = draw.uniform(0.5, 2, size=width)

    def convolution(name: str, inputs: int, outputs: int) -> None:
        tensors[f"{name}.weight"] = draw.normal(size=(outputs, inputs, 3, 3)) / math.sqrt(
            9 * inputs
        )

    convolution("conv1", 3, 16)
    norm("bn1", 16)
    inputs = 16
    for layer, width in enumerate((16, 32, 64), 1):
        for block in range(3):
            for part, width_in in ((1, inputs), (2, width)):
                convolution(f"layer{layer}.{block}.conv{part}", width_in, width)
                norm(f"layer{layer}.{block}.bn{part}", width)
            inputs = width
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def torch_resnet_forward(tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """ResNet-20 with option-A shortcuts in NumPy, float64, in evaluation mode: NCHW."""

    def conv(x: np.ndarray, name: str, stride: int) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        windows = windows[:, :, ::stride, ::stride]
        return np.einsum("nihwab,oiab->nohw", windows, tensors[f"{name}.weight"])

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean, var, scale, bias = (
            tensors[f"{name}.{kind}"][:, None, None]
            for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    x = np.maximum(norm(conv(x.astype(np.float64), "conv1", 1), "bn1"), 0)
    for layer in (1, 2, 3):
        for block in range(3):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = np.maximum(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"), 0)
            y = norm(conv(y, f"{name}.conv2", 1), f"{name}.bn2")
            side = (y.shape[1] - x.shape[1]) // 2
            x = np.pad(x[:, :, ::stride, ::stride], ((0, 0), (side, side), (0, 0), (0, 0)))
            x = np.maximum(x + y, 0)
    return x.mean(axis=(2, 3)) @ tensors["linear.weight"].T + tensors["linear.bias"]


def test_pytorchs_resnet_gives_pytorchs_outputs(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    tensors = torch_resnet_layout(draw)
    save_file(tensors, tmp_path / "init.safetensors")
    images = draw.normal(size=(2, 3, 32, 32)).astype(np.float32)
    resnet = model.build("resnet20", seed=0)
    loaded = load_pytorch("resnet20", tmp_path / "init.safetensors", resnet)
    merged = nnx.merge(loaded.graph, loaded.variables)
    merged.eval()
    got = merged(images.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(got, torch_resnet_forward(tensors, images), rtol=1e-3, atol=1e-3)


def dataset_of(split: Split, mean: tuple[float, ...], std: tuple[float, ...]) -> Dataset:
    return Dataset(
        name="none",
        train=split,
        validation=split,
        test=split,
        num_classes=10,
        mean=mean,
        std=std,
    )


@pytest.mark.parametrize("whole_epoch", [True, False])
def test_an_epoch_moves_params_and_statistics(whole_epoch: bool) -> None:
    draw = np.random.default_rng(0)
    resnet = model.build("resnet20", seed=0)
    images = draw.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    split = Split(images, draw.integers(0, 10, 4).astype(np.int32))
    dataset = dataset_of(split, mean=(0.5,) * 3, std=(0.25,) * 3)
    settings = dataclasses.replace(
        configuration.presets("resnet20_cifar10")["default"], whole_epoch=whole_epoch, batch_size=2
    )
    optimizer = optax.with_extra_args_support(optax.sgd(0.1))
    epoch = training.epoch_function(resnet, dataset, settings, optimizer)
    copies = jax.tree.map(jnp.copy, (resnet.params, resnet.statistics))
    trained, loss = epoch(
        training.Trained(*copies, optimizer.init(resnet.params)),
        jnp.asarray(images),
        jnp.asarray(split.labels),
        jax.random.key(0),
    )
    assert math.isfinite(loss)
    for before, after in (
        (resnet.params, trained.params),
        (resnet.statistics, trained.statistics),
    ):
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
        assert all(jax.tree.leaves(moved))


def test_the_published_preset_is_the_authors_setting() -> None:
    published = configuration.presets("lenet5_mnist")["published"]
    params = model.build(published.model, seed=0).params
    assert stages.budget_of(published, params) == jpq_jax.Budget(bits=6975)
    assert (published.batch_size, published.epochs, published.warmup_epochs) == (256, 120, 10)
    assert (published.learning_rate, published.momentum) == (0.1, 0.93)
    assert (published.rho, published.weight_decay) == (0.05, 5e-4)
    assert published.shift == 0


def test_a_density_is_rounded_up_as_it_is_written() -> None:
    settings = configuration.Config(density=0.035, bits=1)
    params = {"kernel": jnp.zeros((500, 50))}
    assert stages.budget_of(settings, params) == jpq_jax.Budget(bits=875)


def test_alexnets_budgets_follow_each_other() -> None:
    settings = configuration.presets("alexnet_imagenet")["yang"]
    net = jax.eval_shape(lambda: model.build(settings.model, seed=0).params)
    recipe = stages.stages_of(settings, net, steps=10)
    assert [(stage.name, stage.steps) for stage in recipe] == [
        *3 * [("compress", 900)],
        ("fine-tune", 600),
    ]
    limits = [stage.optimizer.init(net)[-1].bit_budget for stage in recipe[:3]]
    sizes = [p.size for p in jax.tree.leaves(net) if p.ndim > 1]
    expected = [
        b * sum(math.ceil(d * n) for n in sizes) for d, b in ((0.12, 6), (0.1, 5), (0.08, 4))
    ]
    assert [int(limit) for limit in limits] == expected


@pytest.mark.parametrize("name", configuration.names())
def test_every_preset_has_its_stages(name: str) -> None:
    for settings in configuration.presets(name).values():
        net = jax.eval_shape(lambda of=settings: model.build(of.model, 0, of.units).params)
        assert stages.stages_of(settings, net, steps=10)


def test_pruning_and_clustering_by_admm_may_be_had_alone() -> None:
    both = dataclasses.replace(
        configuration.presets("lenet5_mnist")["ye-joint"], epochs=100, iterative=False
    )
    net = jax.eval_shape(lambda: model.build("lenet5", seed=0).params)
    shares = (0.2, 0.08, 0.009, 0.07)  # of the layers, as published for 71 times fewer weights
    pruning = dataclasses.replace(both, density=shares, bits=None)
    clustering = dataclasses.replace(both, density=None)
    whole, pruned, clustered = (
        stages.stages_of(settings, net, steps=10) for settings in (both, pruning, clustering)
    )
    assert [(s.name, s.steps) for s in whole] == [
        ("prune", 350),
        ("retrain", 200),
        ("cluster", 300),
        ("retrain clusters", 150),
    ]
    assert [(s.name, s.steps) for s in pruned] == [("prune", 640), ("retrain", 360)]
    assert [(s.name, s.steps) for s in clustered] == [("cluster", 670), ("retrain clusters", 330)]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), net)
    for stage in pruned:
        most = optax.tree.get(stage.optimizer.init(zeros), "pruned_most")
        np.testing.assert_array_equal(most, [100, 2000, 3600, 350])


def test_clusters_found_by_and_by_hold_every_weight_that_is_left() -> None:
    """All are at the values of their leaf after the stage, and what was pruned stays so."""
    settings = dataclasses.replace(
        configuration.presets("lenet5_mnist")["ye-joint"], iterative=True, bits=(2, 1)
    )
    draw = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    net = {name: jnp.where(abs(w) > 0.5, w, 0) for name, w in zip("ab", draw, strict=True)}
    (stage,) = (s for s in stages.stages_of(settings, net, steps=4) if s.name == "cluster")
    trained, state = net, stage.optimizer.init(net)
    update = jax.jit(stage.optimizer.update)
    with jax.numpy_dtype_promotion("standard"):  # which optax's schedules need
        for _ in range(stage.steps):
            updates, state = update(jax.tree.map(jnp.ones_like, net), state, trained)
            trained = optax.apply_updates(trained, updates)
    for name, most in (("a", 4), ("b", 2)):
        np.testing.assert_array_equal(trained[name] == 0, net[name] == 0)
        assert len(np.unique(trained[name][net[name] != 0])) <= most


def test_the_paper_preset_differs_where_it_says() -> None:
    presets = configuration.presets("lenet5_mnist")
    settings, published = (dataclasses.asdict(presets[name]) for name in ("paper", "published"))
    other = {key for key in settings if settings[key] != published[key]}
    assert other == {"shift", "clip", "finetune_epochs"}


def test_learning_rate_rises_then_falls_to_zero() -> None:
    schedule = stages._schedule(0.1, 10, 110)
    rates = np.array([schedule(step) for step in range(111)])
    np.testing.assert_allclose(rates[:10], 0.1 * np.arange(1, 11) / 10, rtol=1e-5)
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(101) / 100))
    np.testing.assert_allclose(rates[10:], expected, atol=1e-6)


def logits_of(of: model.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(of.seen(of.params, of.statistics, images)[0])


def torch_forward(tensors: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """PyTorch's LeNet-5 in NumPy, float64: NCHW, channel-first flattening."""

    def conv(x: np.ndarray, name: str) -> np.ndarray:
        kernel, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))
        return np.einsum("nihwab,oiab->nohw", windows, kernel) + bias[:, None, None]

    def pool(x: np.ndarray) -> np.ndarray:
        n, c, h, w = x.shape
        return x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))

    x = images.astype(np.float64)
    for name in ("features.0", "features.2"):
        x = pool(conv(x, name))
    x = x.reshape(len(x), -1)
    x = np.maximum(x @ tensors["classifier.0.weight"].T + tensors["classifier.0.bias"], 0)
    return x @ tensors["classifier.2.weight"].T + tensors["classifier.2.bias"]


def test_pytorch_weights_give_pytorchs_outputs(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    tensors = files.torch_layout(draw)
    save_file(tensors, tmp_path / "init.safetensors")
    images = draw.normal(size=(3, 1, 28, 28)).astype(np.float32)
    lenet = model.build("lenet5", seed=0)
    loaded = load_pytorch("lenet5", tmp_path / "init.safetensors", lenet)
    logits = logits_of(loaded, images.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(logits, torch_forward(tensors, images), rtol=1e-4, atol=1e-4)


def test_relus_of_the_variant_are_there() -> None:
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    plain, relu = model.build("lenet5", seed=0), model.build("lenet5_relu", seed=0)
    gap = logits_of(plain, images) - logits_of(relu._replace(params=plain.params), images)
    assert float(abs(gap).max()) > 1e-3


@pytest.mark.parametrize("broken", ["missing", "shape", "file"])
def test_bad_pytorch_weights_are_named(broken: str, tmp_path: Path) -> None:
    tensors = files.torch_layout(np.random.default_rng(0))
    path = tmp_path / "init.safetensors"
    if broken == "missing":
        del tensors["classifier.2.bias"]
    if broken == "shape":
        tensors["features.0.weight"] = tensors["features.0.weight"][:19].copy()
    save_file(tensors, path)
    if broken == "file":
        path.write_bytes(path.read_bytes()[:-100])
    expected = {"missing": "classifier.2.bias", "shape": "conv1/kernel", "file": "init.safetensors"}
    with pytest.raises(ValueError, match=expected[broken]):
        load_pytorch("lenet5", path, model.build("lenet5", seed=0))


def test_convolution_by_blocks_is_the_usual_one() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 10, 8, 3)).astype(np.float32)
    kernel = draw.normal(size=(5, 3, 3, 7)).astype(np.float32)
    bias = draw.normal(size=7).astype(np.float32)
    y = nnx.Conv(3, 7, (5, 3), padding="VALID", rngs=nnx.Rngs(0))
    y.kernel[...], y.bias[...] = kernel, bias
    expected = nnx.max_pool(y(x), (2, 2), (2, 2))
    assert jax.default_backend() == "cpu"
    np.testing.assert_allclose(
        convolved_and_pooled(x, kernel, bias), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("images", "groups"), [(1, 1), (37, 1), (32, 2), (0, 1)])
def test_gradients_by_parts_are_the_usual_ones(images: int, groups: int) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(images, 9, 8, 4)).astype(np.float32)
    kernel = draw.normal(size=(3, 3, 4 // groups, 6)).astype(np.float32)
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}

    def loss(convolution: Any, x: Any, kernel: Any) -> jax.Array:
        return jnp.sum(jnp.sin(convolution(x, kernel, (2, 1), "SAME", **options)))

    of_both = jax.grad(loss, argnums=(1, 2))
    expected = of_both(jax.lax.conv_general_dilated, x, kernel)
    for got, usual in zip(of_both(convolved, x, kernel), expected, strict=True):
        np.testing.assert_allclose(got, usual, rtol=1e-4, atol=1e-4)


def test_the_epoch_is_one_program_without_callbacks() -> None:
    settings = configuration.presets("lenet5_mnist")["paper"]
    lenet = model.build("lenet5", seed=0)
    stage = stages.stages_of(settings, lenet.params, steps=2)[0]
    assert stage.name == "compress"
    images = np.zeros((512, 28, 28, 1), np.uint8)
    split = Split(images, np.zeros(512, np.int32))
    dataset = dataset_of(split, mean=(0.0,), std=(1.0,))
    epoch = training.epoch_function(lenet, dataset, settings, stage.optimizer)
    state = stage.optimizer.init(lenet.params)
    with jax.numpy_dtype_promotion("standard"):  # which optax's schedules need
        trained = training.Trained(lenet.params, lenet.statistics, state)
        lowered = epoch.lower(trained, images, split.labels, jax.random.key(0))
    text = lowered.compile().as_text()
    assert not [t for t in re.findall(r'custom_call_target="([^"]*)"', text) if "callback" in t]
    assert " infeed(" not in text
    assert " outfeed(" not in text
    assert optax.tree.get(state, "bit_budget") == 6975


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0.1, 100.0), (1.0, -1e-6, 1e-6)])
def test_a_model_has_nothing_to_learn_from_itself(share: float, least: float, most: float) -> None:
    lenet = model.build("lenet5", seed=0)
    draw = np.random.default_rng(0)
    split = Split(
        draw.integers(0, 256, (4, 28, 28, 1), dtype=np.uint8), np.arange(4, dtype=np.int32)
    )
    dataset = dataset_of(split, mean=(0.5,), std=(0.25,))
    loss = training._loss_function(lenet, dataset, share, teacher=lenet.variables)
    value, _ = loss(lenet.params, lenet.statistics, jnp.asarray(split.images), split.labels)
    assert least < float(value) <= most
