"""What an experiment can be told; the files in `experiments/configs/` hold only what differs."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any, Literal

from experiments import configs
from jpq_jax.policy.find import Method as SearchName

ModelName = Literal[
    "lenet5",
    "lenet5_relu",
    "lenet300",
    "resnet20",
    "resnet50",
    "resnet50_cifar10",
    "alexnet",
    "vgg16",
    "vgg16_cifar10",
    "mobilenet",
]
DatasetName = Literal["mnist", "cifar10", "imagenet"]
Method = Literal["admm", "joint", "pruning", "clustering", "ye", "channelwise"]
OptimizerName = Literal["sgd", "adam"]


_BUDGETS = {
    "admm": ({"ratio"}, {"density", "bits"}),
    "joint": ({"ratio"}, {"nbytes"}, {"density", "bits"}),
    "pruning": ({"density"},),
    "clustering": ({"bits"},),
    "ye": ({"density", "bits"}, {"density"}, {"bits"}),
    "channelwise": ({"ratio"},),
}
_FEWEST_IMAGES = 45_000  # that a data set here trains on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment: train a dense baseline or take one, compress it to a budget, measure the file."""

    dataset: DatasetName = "mnist"
    """What to train on."""
    model: ModelName = "lenet5"
    """lenet5 is the papers' (Caffe), without ReLUs after the convolutions; resnet20 is for CIFAR-10."""
    units: tuple[int, int, int] | None = None
    """Channels and hidden units of a LeNet-5 that is narrower than its 20, 50 and 500; of a model from --init, the strongest stay."""
    macs: float | None = None
    """Share of the multiplications that is left: before training, channels of the model from --init are taken out, those that a search
    finds to matter least."""
    multiple: int = 1
    """Of a layer's channels, those that stay are so many, or twice, and so on: XLA's convolutions on CPUs are slow at other
    numbers than multiples of 8."""
    empty: bool = False
    """With macs: layers may be left without channels, as within a residual block that is not needed."""
    search: SearchName = "evolution"
    """How channels, and the bits of the method channelwise, are searched: by evolution, the agent of AJPQ, a rule, or chance."""
    evaluations: int = 300
    """Models that a search tries."""
    init: str | None = None
    """Start from this safetensors file in PyTorch's layout."""
    data_dir: str | None = None
    """Where the data set is, if it is not the embedded MNIST: see experiments/data/loading.py."""
    workdir: str | None = None
    """Where checkpoints, artifact, results and plots go; default work/CONFIG-PRESET-SEED. A run that was stopped goes on from there."""
    distributed: bool = False
    """This is one of several processes, as on a pod, that find each other and train together; for data that is streamed."""
    seed: int = 0
    """Of everything random: same seed, same result."""

    ratio: float | None = None
    """The budget: compression against float32 in the paper metric. Or give nbytes, or what else the method takes."""
    nbytes: int | None = None
    """The budget: bytes of the final file, everything in it counted; for the joint method."""
    density: float | tuple[float, ...] | None = None
    """The budget as in the paper, with bits: bits times the sum of ceil(density x weights) over the kernels. For pruning and ye,
    the share of all kernels' weights that is kept; or that of each kernel in turn, in the order of the params."""
    bits: int | tuple[int, ...] | None = None
    """Bits per nonzero weight, with density; also every kernel's bit-width at the start. For clustering and ye they may be given for
    each kernel in turn, in the order of the params."""

    before: tuple[tuple[float, int], ...] = ()
    """Densities and bits of looser budgets that come before, one after the other, each for as many epochs."""

    train_images: int | None = None
    """Train on the first so many images only, for a quick look."""
    all_images: bool = False
    """Train on the validation images, too, when all is chosen: the last epoch counts then, and accuracy on those images says nothing."""
    method: Method = "admm"
    """admm is Yang et al.'s; joint trains latent weights through the joint projection; pruning and clustering do so through
    these alone; channelwise through a bit-width for each channel, searched before; ye prunes, retrains, clusters and retrains,
    the first and the third by ADMM, in 35, 20, 30 and 15 % of the epochs; with a density or bits alone it is the half of this."""
    batch_size: int = 256
    """Images per step."""
    shift: int = 0
    """Random shifts of the training images, in pixels."""
    turn: float = 0.0
    """Random rotations of the training images, in degrees."""
    zoom: float = 0.0
    """Random stretching and shrinking of their axes, by up to this share."""
    flip: bool = False
    """Mirror half of the training images."""
    whole_epoch: bool = True
    """An epoch is one program; False: one for each step, which is many times faster for usual convolutions on CPUs."""
    optimizer: OptimizerName = "sgd"
    """Of the latents, where the method has some; sgd has momentum, and trains everything else."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """L2, on kernels."""
    clip: float | None = None
    """Gradients longer than this, over all leaves together, are shortened to it."""

    distill: float = 0.0
    """Share of the loss that is the divergence from what the dense baseline says of an image, in place of its label."""

    norm_batches: int = 0
    """Batches whose statistics the norms of the compressed model have, in their mean; 0 for those of training."""

    dense_epochs: int = 0
    """Epochs of the dense baseline before compression, from --init or from random weights."""
    dense_learning_rate: float = 0.05
    """Peak of the dense baseline's schedule: one epoch of warm-up, then a cosine to 0."""

    epochs: int = 1
    """Epochs of compression."""
    warmup_epochs: int = 0
    """Of them, with a rising learning rate."""
    learning_rate: float = 0.1
    """Peak of the compression's schedule; a cosine to 0 after the warm-up."""
    rho: float = 0.05
    """ADMM's pull toward the compressed copy. That of ye rises tenfold in a stage, and is ten times as strong while clustering."""
    iterative: bool = False
    """ye puts the weights that are left to their values by and by, the largest first, and retrains the others, in place of ADMM."""
    replan_every: int = 10
    """Steps between plans of the methods with latents."""
    zero: bool = True
    """Whether clustering alone may put weights to 0, beside its values."""
    pull: float = 0.0
    """Of the latents toward their projection, where the method has some."""
    ramp_epochs: int = 0
    """Epochs in which the joint method's budget falls to its end, from `ramp_bits` for every weight, or what pruning or ye keeps
    falls, from all."""
    ramp_bits: float = 8.0
    """Bits of a weight that the budget falls from."""
    ramp_power: float = 3.0
    """Of the polynomial along which it falls."""

    finetune_epochs: int = 0
    """Epochs after that with the support and the bit-widths held, straight through."""
    finetune_learning_rate: float = 0.01
    """Peak of their schedule, a cosine to 0; and of the two clustering stages of ye."""

    @property
    def densities(self) -> tuple[float, ...]:
        """The share of each kernel, or of all; none if it is not given."""
        return _as_tuple(self.density)

    @property
    def widths(self) -> tuple[int, ...]:
        """The bits of each kernel, or of all; none if they are not given."""
        return _as_tuple(self.bits)

    def __post_init__(self) -> None:
        budget = {key: getattr(self, key) for key in ("ratio", "nbytes", "density", "bits")}
        known = _BUDGETS[self.method]
        if {key for key, value in budget.items() if value is not None} not in known:
            expected = " or ".join(" with ".join(sorted(keys)) for keys in known)
            raise ValueError(
                f"the budget of {self.method} is {expected}, the others None; got {budget}"
            )
        for holds, expected in (
            (self.ratio is None or self.ratio > 0, "a positive ratio"),
            (self.nbytes is None or self.nbytes > 0, "a positive number of bytes"),
            (
                self.nbytes is None or (self.method == "joint" and not self.finetune_epochs),
                "the joint method without fine-tuning for a budget in bytes",
            ),
            (all(0 < share <= 1 for share in self.densities), "a density above 0, up to 1"),
            (
                not isinstance(self.density, tuple) or self.method in ("pruning", "ye"),
                "one density, but for pruning and ye",
            ),
            (all(1 <= bits <= 8 for bits in self.widths), "bits of 1 to 8"),
            (
                not isinstance(self.bits, tuple) or self.method in ("clustering", "ye"),
                "one number of bits, but for clustering and ye",
            ),
            (
                self.units is None or (self.model.startswith("lenet5") and min(self.units) >= 1),
                "units of at least 1, and only for LeNet-5",
            ),
            (
                not self.before or (self.method == "admm" and self.density is not None),
                "budgets before only for admm, with density and bits",
            ),
            (
                self.macs is None or (0 < self.macs <= 1 and not self.dense_epochs),
                "a share of macs above 0, up to 1, and without dense_epochs",
            ),
            (
                self.method != "channelwise" or not (self.dense_epochs or self.finetune_epochs),
                "channelwise without dense_epochs and finetune_epochs",
            ),
            (
                self.method != "admm"
                or not (self.ramp_epochs or self.pull or self.optimizer != "sgd"),
                "admm without ramp_epochs and pull, and with sgd",
            ),
            (
                self.method != "ye"
                or (
                    not (self.warmup_epochs or self.finetune_epochs or self.pull)
                    and self.optimizer == "sgd"
                ),
                "ye without warmup_epochs, finetune_epochs and pull, and with sgd",
            ),
            (
                not self.iterative or (self.method == "ye" and self.bits is not None),
                "iterative only for ye with bits",
            ),
            (self.evaluations >= 1, "at least 1 evaluation"),
            (self.multiple >= 1, "a multiple of at least 1"),
            (self.epochs >= 1, "at least 1 epoch"),
            (0 <= self.warmup_epochs < self.epochs, "fewer warmup_epochs than epochs"),
            (self.dense_epochs >= 0, "dense_epochs of at least 0"),
            (self.finetune_epochs >= 0, "finetune_epochs of at least 0"),
            (0 <= self.ramp_epochs <= self.epochs, "at most as many ramp_epochs as epochs"),
            (self.replan_every >= 1, "replan_every of at least 1"),
            (self.train_images is None or self.train_images >= 1, "at least 1 training image"),
            (
                1 <= self.batch_size <= (self.train_images or _FEWEST_IMAGES),
                "batches no larger than the data",
            ),
            (0 <= self.shift <= 8, "a shift of 0 to 8 pixels"),
            (0 <= self.turn <= 180, "a turn of 0 to 180 degrees"),
            (0 <= self.zoom <= 1, "a zoom of 0 to 1"),
            (self.rho > 0, "a positive rho"),
            (0 <= self.distill <= 1, "a share of distillation from 0 to 1"),
            (self.norm_batches >= 0, "no negative number of batches"),
            (self.pull >= 0, "a pull of at least 0"),
            (self.clip is None or self.clip > 0, "a positive clip"),
        ):
            if not holds:
                raise ValueError(f"expected {expected}; got {self}")


def _as_tuple(given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)


def names() -> list[str]:
    """The configs there are."""
    return sorted(module.name for module in pkgutil.iter_modules(configs.__path__))


def presets(name: str) -> dict[str, Config]:
    """The presets of a config by name; "default" is among them.

    Raises:
      ValueError: if there is no such config.
    """
    if name not in names():
        raise ValueError(f"no config {name!r}; there are: {', '.join(names())}")
    return importlib.import_module(f"experiments.configs.{name}").PRESETS
