"""How programs are compiled that run long, and what a compiled module does."""

import math
import re

# What XLA takes by default, and tests do not, see conftest.py.
AS_FOR_USERS = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 3}

_GATHERS = r"= \(?\w+\[([\d,]*)\].* (?:all-gather|all-to-all|collective-permute)"


def gathered(text: str) -> int:
    """Elements of the largest array that it gathers from other devices; 0 if there is none."""
    shapes = re.findall(_GATHERS, text)
    return max((math.prod(int(n) for n in shape.split(",") if n) for shape in shapes), default=0)
