"""ResNet-20 on CIFAR-10, started from a trained baseline with --init, in as few epochs as a CPU allows.

`default` trains through the joint projection. `published` is the method of Yang et al., CVPR 2020, in the same number of
epochs, to compare with. Set --ratio for another point of the curve. `pruning` and `clustering` are these alone, for as
good as no loss.
"""

import dataclasses

from experiments.config import Config

COMMON = Config(
    dataset="cifar10",
    model="resnet20",
    ratio=50,
    shift=4,
    flip=True,
    batch_size=128,
    whole_epoch=False,
    epochs=12,
    learning_rate=0.05,
    weight_decay=1e-4,
    norm_batches=64,
)

_PRUNING = dataclasses.replace(
    COMMON,
    method="pruning",
    ratio=None,
    density=0.9,
    epochs=1,
    learning_rate=2e-4,
    pull=1e-3,
    distill=1.0,
)

PRESETS = {
    "default": dataclasses.replace(COMMON, method="joint", ramp_epochs=7),
    "published": dataclasses.replace(COMMON, warmup_epochs=1),
    "pruning": _PRUNING,
    "clustering": dataclasses.replace(
        _PRUNING, method="clustering", density=None, bits=8, learning_rate=1e-4
    ),
}
