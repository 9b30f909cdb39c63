"""Strict numerics for every test, on eight virtual devices. Set before JAX is first imported."""

import os
from pathlib import Path

# Most of a test's time is compilation. Without optimization it takes a third. With JPQ_THOROUGH set all is compiled as for users,
# as it is always in tests that run long (`compiled.AS_FOR_USERS`) or in processes of their own.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8" + (
    ""
    if os.environ.get("JPQ_THOROUGH")
    else " --xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
)

import jax
import pytest

pytest.register_assert_rewrite("files")

# Many tests compile the same programs; kept beside pytest's own cache, by their content.
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"

jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Programs hold maps of memory, of which a process may have 65,530."""
    yield
    jax.clear_caches()
