"""Strict numerics for every test, on eight virtual devices. Set before JAX is first imported."""

import os
from collections.abc import Iterator
from pathlib import Path

from compiled import QUICKLY

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICKLY}"

import jax
import pytest

pytest.register_assert_rewrite("files")

# Many tests compile the same programs; kept beside pytest's own cache, by their content.
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"

jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data sets are prepared anew, once for all workers, whose own folders are side by side."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Programs hold maps of memory, of which a process may have 65,530."""
    yield
    jax.clear_caches()
