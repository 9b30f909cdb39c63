"""Tests are compiled quickly by any XLA, whichever flags it knows."""

import jax
import jax.numpy as jnp
import pytest
from compiled import AS_FOR_USERS, FLAGS, QUICKLY, THOROUGH, known

KNOWN = "--xla_backend_optimization_level=0"


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        ([KNOWN], [KNOWN]),
        (["--xla_no_such_flag=true", KNOWN], [KNOWN]),
        (["--xla_no_such_flag=true", KNOWN, "--xla_nor_this=3"], [KNOWN]),
        (["--xla_no_such_flag=true"], []),
        ([], []),
    ],
)
def test_flags_that_xla_does_not_know_are_left_out(flags: list[str], left: list[str]) -> None:
    assert known(flags) == left


@pytest.mark.skipif(THOROUGH, reason="all is compiled as for users")
def test_quick_compilation_stays() -> None:
    assert set(QUICKLY.split()) <= set(FLAGS)
    assert KNOWN in QUICKLY.split()


def test_a_program_can_be_compiled_as_for_users() -> None:
    assert jax.jit(lambda x: x + 1, compiler_options=AS_FOR_USERS)(jnp.ones(3)).sum() == 6
