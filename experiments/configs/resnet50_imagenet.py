"""ResNet-50 on ImageNet: `pruning` to an eighth, as Ye et al., 2019 (arXiv 1903.09769), report; for accelerators.

`default` trains through the joint projection. Start them from a trained network with --init.
"""

import dataclasses

from experiments.config import Config

COMMON = Config(
    dataset="imagenet",
    model="resnet50",
    method="joint",
    ratio=50,
    whole_epoch=False,
    weight_decay=1e-4,
    learning_rate=0.02,
    epochs=60,
    ramp_epochs=36,
    pull=1e-3,
)

PRESETS = {
    "default": COMMON,
    "pruning": dataclasses.replace(
        COMMON, method="pruning", ratio=None, density=1 / 8, finetune_epochs=30
    ),
}
