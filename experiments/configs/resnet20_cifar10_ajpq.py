"""ResNet-20 on CIFAR-10 with fewer channels, started from a trained baseline with --init (after Tang, Wei, Li, 2020, AJPQ).

`default` takes channels out by search, sixteen at a time, until 45 % of the multiplications are left, and then trains for a file of
53,000 bytes, a twentieth of float32: whole blocks go, whose convolutions then take no time, where fewer channels in each save little.
`channelwise` gives each channel that is left a bit-width of its own instead, by search, too; `agent` does so by the paper's
hierarchical agent.
"""

import dataclasses

from experiments.configs.resnet20_cifar10 import COMMON

_BYTES = dataclasses.replace(
    COMMON,
    method="joint",
    macs=0.45,
    multiple=16,
    empty=True,
    evaluations=200,
    ratio=None,
    nbytes=53_000,
    epochs=20,
    ramp_epochs=8,
    learning_rate=0.05,
    pull=1e-3,
    distill=0.5,
)

_CHANNELWISE = dataclasses.replace(
    _BYTES, method="channelwise", nbytes=None, ratio=18, ramp_epochs=0
)

PRESETS = {
    "default": _BYTES,
    "channelwise": _CHANNELWISE,
    "agent": dataclasses.replace(_CHANNELWISE, search="agent"),
}
