"""AlexNet on ImageNet, by the published settings; for accelerators.

`yang` is Yang et al., CVPR 2020: three runs of 90 epochs, one after the other, under ever smaller budgets, and 60 epochs of
fine-tuning with the support and the bit-widths held. `ye` is Ye et al., 2018: pruning to a 24.7th, masked retraining, clustering,
retraining of the clusters. `joint` trains through the joint projection at Yang et al.'s ratio. `default` is a short `joint`.
Start them from a trained network with --init.
"""

import dataclasses

from experiments.config import Config

_COMMON = Config(
    dataset="imagenet",
    model="alexnet",
    ratio=205,
    whole_epoch=False,
    weight_decay=1e-4,
    learning_rate=0.01,
)

_JOINT = dataclasses.replace(_COMMON, method="joint", epochs=90, ramp_epochs=50, pull=1e-3)

PRESETS = {
    "default": dataclasses.replace(_JOINT, epochs=10, ramp_epochs=6),
    "joint": _JOINT,
    "yang": dataclasses.replace(
        _COMMON,
        ratio=None,
        before=((0.12, 6), (0.10, 5)),
        density=0.08,
        bits=4,
        rho=1e-3,
        epochs=90,
        finetune_epochs=60,
        finetune_learning_rate=1e-3,
    ),
    "ye": dataclasses.replace(
        _COMMON, method="ye", ratio=None, density=1 / 24.7, bits=3, rho=1.5e-3, epochs=160
    ),
}
