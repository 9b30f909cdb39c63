"""LeNet-5 on MNIST with fewer channels, started from the authors' baseline with --init (after Tang, Wei, Li, 2020, AJPQ).

`default` takes channels out by search, four at a time, until 5.5 % of the multiplications are left, and then trains for a file of
5,700 bytes, a 300th of float32, on images that are also turned and stretched. `channelwise` gives each channel that is left a
bit-width of its own instead, by search, too; `agent` does so by the paper's hierarchical agent.
"""

import dataclasses

from experiments.configs.lenet5_mnist import JOINT

_BYTES = dataclasses.replace(
    JOINT,
    macs=0.055,
    multiple=4,
    turn=10.0,
    zoom=0.1,
    ratio=None,
    nbytes=5_700,
    epochs=60,
    ramp_epochs=30,
    clip=1.0,
    distill=0.5,
    finetune_epochs=0,
)

_CHANNELWISE = dataclasses.replace(
    _BYTES, method="channelwise", nbytes=None, ratio=200, ramp_epochs=0
)

PRESETS = {
    "default": _BYTES,
    "channelwise": _CHANNELWISE,
    "agent": dataclasses.replace(_CHANNELWISE, search="agent"),
}
