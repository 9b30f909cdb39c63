"""MNIST and CIFAR-10 as uint8 arrays, ImageNet as a stream of batches, and the random changes that training makes to them.

`load` reads a data set through tensorflow-datasets (no TensorFlow) or from its own files;
`normalize` and the random changes run on the device, inside the jitted step.
"""

from .augment import normalize as normalize
from .augment import random_flip as random_flip
from .augment import random_shift as random_shift
from .augment import random_turn as random_turn
from .dataset import Dataset as Dataset
from .dataset import Split as Split
from .imagenet import Part as Part
from .loading import load as load

__all__ = [
    "Dataset",
    "Part",
    "Split",
    "load",
    "normalize",
    "random_flip",
    "random_shift",
    "random_turn",
]
