"""LeNet-5 on MNIST, after Yang et al., CVPR 2020.

`default` trains a dense model, then compresses it a thousandfold through the joint projection, in minutes. `admm` does
so by the published method, five-hundredfold. `published` is the authors' setting for about 2,000x, to be started from
their baseline with --init. `paper` is the same with random shifts, in place of the 5,000 training images that are held
out here, with the fine-tuning that the authors end their AlexNet runs with, and with gradients clipped: their learning
rate is at the edge of what is stable, and one seed in two diverged. `joint` trains through the joint projection, and is
to be started from their baseline too. `relu` is the same for a network with ReLUs after its convolutions, which reaches
a higher accuracy and is trained here. `bytes` is for a file of so many bytes, all that is in it counted: that network,
but narrow, trained on images that are also turned and stretched, and then by itself and by what it said when it was
dense. `smallest` is the same for half as many bytes.

From the same baseline, too: `pruning` alone, with the layers' shares found under one number, and `clustering` alone, all weights to
two values of their layer, both trained straight through; `ye-joint`, both in the four stages of Ye et al., 2018: pruning by ADMM and
retraining, then weights put to their values share by share while the others are retrained, and retraining of the clusters.
"""

import dataclasses

from experiments.config import Config

_PUBLISHED = Config(
    density=0.0054,
    bits=3,
    momentum=0.93,
    epochs=120,
    warmup_epochs=10,
)

JOINT = Config(
    method="joint",
    ratio=3000,
    shift=2,
    batch_size=128,
    epochs=80,
    ramp_epochs=44,
    learning_rate=0.02,
    pull=1e-3,
    finetune_epochs=10,
)

_BYTES = dataclasses.replace(
    JOINT,
    model="lenet5_relu",
    units=(10, 24, 64),
    turn=10.0,
    zoom=0.1,
    dense_epochs=30,
    ratio=None,
    nbytes=3030,
    epochs=70,
    ramp_epochs=35,
    ramp_bits=5.0,
    ramp_power=4.0,
    clip=1.0,
    distill=0.5,
    finetune_epochs=0,
)

_SMALLEST = dataclasses.replace(_BYTES, nbytes=1520, units=(8, 16, 40), epochs=90, ramp_epochs=45)

_PRUNING = dataclasses.replace(
    JOINT, method="pruning", ratio=None, density=1 / 300, epochs=60, ramp_epochs=36
)

PRESETS = {
    "default": dataclasses.replace(
        JOINT, ratio=1000, dense_epochs=5, epochs=12, ramp_epochs=7, finetune_epochs=2
    ),
    "paper": dataclasses.replace(_PUBLISHED, shift=2, clip=1.0, finetune_epochs=20),
    "published": _PUBLISHED,
    "admm": Config(
        ratio=500, shift=2, dense_epochs=5, epochs=18, warmup_epochs=1, learning_rate=0.03
    ),
    "joint": JOINT,
    "bytes": _BYTES,
    "smallest": _SMALLEST,
    "pruning": _PRUNING,
    "clustering": dataclasses.replace(
        _PRUNING, method="clustering", density=None, bits=1, zero=False, epochs=30, ramp_epochs=0
    ),
    "ye-joint": dataclasses.replace(
        _PRUNING,
        method="ye",
        density=0.007,
        bits=(3, 2, 2, 3),
        iterative=True,
        epochs=100,
        ramp_epochs=22,
        distill=0.5,
        pull=0.0,
        finetune_epochs=0,
    ),
    "relu": dataclasses.replace(
        JOINT, model="lenet5_relu", turn=10.0, zoom=0.1, dense_epochs=20, ratio=4000
    ),
}
