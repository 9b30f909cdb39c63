"""VGG-16 on ImageNet: `ye` prunes to a 23.4th, as Ye et al., 2018, report, and clusters; for accelerators.

`default` trains through the joint projection. Start them from a trained network with --init.
"""

import dataclasses

from experiments.config import Config

_COMMON = Config(
    dataset="imagenet",
    model="vgg16",
    ratio=100,
    whole_epoch=False,
    weight_decay=1e-4,
    learning_rate=0.01,
)

PRESETS = {
    "default": dataclasses.replace(_COMMON, method="joint", epochs=30, ramp_epochs=18, pull=1e-3),
    "ye": dataclasses.replace(
        _COMMON, method="ye", ratio=None, density=1 / 23.4, bits=3, rho=1.5e-3, epochs=160
    ),
}
