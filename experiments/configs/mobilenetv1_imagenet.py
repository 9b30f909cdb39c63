"""MobileNet-V1 on ImageNet, as Tang, Wei, Li, 2020 (AJPQ) compress it; for accelerators. Start from a trained network with --init.

`default` takes channels out by search until half of the multiplications are left, and trains through the joint projection at a fifth
of the size; `channelwise` has a bit-width for each channel, found by search; `agent` by the paper's hierarchical agent.
"""

import dataclasses

from experiments.config import Config

_COMMON = Config(
    dataset="imagenet",
    model="mobilenet",
    macs=0.5,
    method="joint",
    ratio=5,
    whole_epoch=False,
    weight_decay=4e-5,
    learning_rate=0.02,
    epochs=60,
    ramp_epochs=20,
    pull=1e-3,
)

_CHANNELWISE = dataclasses.replace(_COMMON, method="channelwise", ramp_epochs=0)

PRESETS = {
    "default": _COMMON,
    "channelwise": _CHANNELWISE,
    "agent": dataclasses.replace(_CHANNELWISE, search="agent"),
}
