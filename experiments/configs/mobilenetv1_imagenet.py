"""MobileNet-V1 on ImageNet, as Tang, Wei, Li, 2020 (AJPQ) compress it; for accelerators. Start from a trained network with --init.

`default` takes channels out by search until half of the multiplications are left, and trains through the joint projection at a fifth
of the size; `channelwise` has a bit-width for each channel, found by search; `agent` by the paper's hierarchical agent.
"""

import dataclasses

from experiments.configs.resnet50_imagenet import COMMON

_JOINT = dataclasses.replace(
    COMMON,
    model="mobilenet",
    method="joint",
    macs=0.5,
    ratio=5,
    ramp_epochs=20,
    weight_decay=4e-5,
)

_CHANNELWISE = dataclasses.replace(_JOINT, method="channelwise", ramp_epochs=0)

PRESETS = {
    "default": _JOINT,
    "channelwise": _CHANNELWISE,
    "agent": dataclasses.replace(_CHANNELWISE, search="agent"),
}
