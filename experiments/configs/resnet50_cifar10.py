"""ResNet-50 on CIFAR-10, 23.47 M weights: `yang` is the ratio of Yang et al., CVPR 2020, by their method; for accelerators.

`default` trains through the joint projection at the same ratio. Both train the dense network first, unless --init has one.
"""

import dataclasses

from experiments.config import Config

_COMMON = Config(
    dataset="cifar10",
    model="resnet50_cifar10",
    ratio=836,
    shift=4,
    flip=True,
    batch_size=128,
    whole_epoch=False,
    weight_decay=5e-4,
    dense_epochs=150,
    dense_learning_rate=0.1,
    epochs=150,
    learning_rate=0.05,
)

PRESETS = {
    "default": dataclasses.replace(_COMMON, method="joint", ramp_epochs=90, pull=1e-3),
    "yang": dataclasses.replace(_COMMON, warmup_epochs=10),
}
