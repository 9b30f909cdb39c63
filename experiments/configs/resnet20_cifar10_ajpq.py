"""ResNet-20 on CIFAR-10 with fewer channels, started from a trained baseline with --init (after Tang, Wei, Li, 2020, AJPQ).

`default` takes channels out by search until 45 % of the multiplications are left, and then trains for a file of 53,000 bytes, a
twentieth of float32. `channelwise` gives each channel that is left a bit-width of its own instead, by search, too; `agent` does so by the
paper's hierarchical agent.
"""

import dataclasses

from experiments.config import Config

_COMMON = Config(
    dataset="cifar10",
    model="resnet20",
    macs=0.45,
    evaluations=300,
    shift=4,
    flip=True,
    batch_size=128,
    whole_epoch=False,
    epochs=20,
    learning_rate=0.03,
    pull=1e-3,
    weight_decay=1e-4,
    distill=0.5,
    method="joint",
    nbytes=53_000,
    ramp_epochs=10,
)

_CHANNELWISE = dataclasses.replace(
    _COMMON, method="channelwise", nbytes=None, ratio=18, ramp_epochs=0
)

PRESETS = {
    "default": _COMMON,
    "channelwise": _CHANNELWISE,
    "agent": dataclasses.replace(_CHANNELWISE, search="agent"),
}
