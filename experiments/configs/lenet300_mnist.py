"""LeNet-300-100 on MNIST: pruned and clustered in the four stages of Ye et al., 2018 (`default`).

The dense model comes first. `pruning` and `clustering` are these alone, trained straight through; `joint` takes both at once.
"""

import dataclasses

from experiments.config import Config

_COMMON = Config(
    model="lenet300",
    method="ye",
    density=1 / 25,
    bits=4,
    batch_size=128,
    dense_epochs=40,
    epochs=120,
    ramp_epochs=36,
    learning_rate=0.05,
)

_PRUNING = dataclasses.replace(
    _COMMON,
    method="pruning",
    density=0.03,
    bits=None,
    ramp_epochs=72,
    pull=1e-3,
    finetune_epochs=20,
)

PRESETS = {
    "default": _COMMON,
    "pruning": _PRUNING,
    "clustering": dataclasses.replace(
        _PRUNING,
        method="clustering",
        density=None,
        bits=3,  # with one, without zero, a layer diverges at this learning rate
        epochs=60,
        ramp_epochs=0,
        distill=0.5,
    ),
    "joint": dataclasses.replace(_PRUNING, method="joint", density=None, ratio=500, distill=0.5),
}
