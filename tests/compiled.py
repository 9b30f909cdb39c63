"""How programs are compiled that run long, and what a compiled module does."""

import math
import os
import re

# More examples, and all compiled as for users.
THOROUGH = bool(os.environ.get("JPQ_THOROUGH"))

# Most of a test's time is compilation. Without optimization it takes a third, and what it gives runs four times as long.
QUICKLY = (
    ""
    if THOROUGH
    else "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
)

# What XLA takes by default, for programs of tests that run long.
AS_FOR_USERS = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 3}

_GATHERS = r"= \(?\w+\[([\d,]*)\].* (?:all-gather|all-to-all|collective-permute)"


def gathered(text: str) -> int:
    """Elements of the largest array that it gathers from other devices; 0 if there is none."""
    shapes = re.findall(_GATHERS, text)
    return max((math.prod(int(n) for n in shape.split(",") if n) for shape in shapes), default=0)
