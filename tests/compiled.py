"""How programs are compiled that run long, and what a compiled module does."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence

# More examples, and all compiled as for users.
THOROUGH = bool(os.environ.get("JPQ_THOROUGH"))

# Most of a test's time is compilation. Without optimization it takes a third to a half, and what
# it gives runs four times as long.
FLAGS = (
    "--xla_cpu_use_fusion_emitters=false",  # jaxlib 0.11.1 knows it no longer
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
)
_AS_FOR_USERS = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 3}

_GATHERS = r"= \(?\w+\[([\d,]*)\].* (?:all-gather|all-to-all|collective-permute)"


def known(flags: Sequence[str]) -> list[str]:
    """Those that the installed XLA knows. An unknown one ends a process: another one is asked."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    asked = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"], env=env, capture_output=True, text=True
    )
    return [flag for flag in flags if asked.returncode == 0 or flag not in asked.stderr]


if not THOROUGH and "JPQ_QUICKLY" not in os.environ:
    # Workers and other processes of a test inherit the answer.
    os.environ["JPQ_QUICKLY"] = " ".join(known(FLAGS))

# Flags for XLA.
QUICKLY = "" if THOROUGH else os.environ["JPQ_QUICKLY"]

# What XLA takes by default, for programs of tests that run long.
AS_FOR_USERS = {
    option: value for option, value in _AS_FOR_USERS.items() if f"--{option}=" in QUICKLY
}


def gathered(text: str) -> int:
    """Elements of the largest array that it gathers from other devices; 0 if there is none."""
    shapes = re.findall(_GATHERS, text)
    return max((math.prod(int(n) for n in shape.split(",") if n) for shape in shapes), default=0)
