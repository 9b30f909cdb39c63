"""LeNet-5 on MNIST by the method of Yang et al., CVPR 2020.

`default` trains a dense model, then compresses it, in minutes. `paper` is the authors' published setting for
about 2,000x, to be started from their baseline with --init.
"""

from experiments.config import Config

PRESETS = {
    "default": Config(
        ratio=500,
        shift=2,
        dense_epochs=5,
        epochs=12,
        warmup_epochs=1,
    ),
    "paper": Config(
        density=0.0054,
        bits=3,
        momentum=0.93,
        epochs=120,
        warmup_epochs=10,
    ),
}
