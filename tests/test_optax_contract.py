"""The tests that optax has for its contributed optimizers, as installed, over the transformations of ours.

Their table takes optimizers by name, learning rates as schedules where the signature says so; so ours are given one here, and a budget
that nothing exceeds, under which they must find the optimum as any other optimizer does.
"""

import ast
import importlib.util
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from compiled import THOROUGH

import jpq_jax

Transformation = optax.GradientTransformationExtraArgs

ALL_BITS = jpq_jax.Budget(bits=math.inf)
MANY_BYTES = jpq_jax.Budget(nbytes=10_000)
OPTIONS: dict[str, Any] = {"every": 50, "where": lambda path, leaf: True}
RATE = 1e-3
# What they take half a minute for each, in 30,000 steps; all with JPQ_THOROUGH.
QUICK = ("latent_joint", "latent_pruning", "admm_to")
HOLDING_ZEROS = ("mask_updates", "cluster_updates")
TABLES = ("_MAIN_OPTIMIZERS_UNDER_TEST", "_ALL_OPTIMIZERS_UNDER_TEST")


def latent_joint(learning_rate: optax.ScalarOrSchedule, pull: float = 0.0) -> Transformation:
    return jpq_jax.latent(optax.sgd(learning_rate), jpq_jax.joint(ALL_BITS), pull=pull, **OPTIONS)


def latent_joint_in_bytes(learning_rate: optax.ScalarOrSchedule) -> Transformation:
    return jpq_jax.latent(optax.sgd(learning_rate), jpq_jax.joint(MANY_BYTES), **OPTIONS)


def latent_pruning(learning_rate: optax.ScalarOrSchedule, pull: float = 0.1) -> Transformation:
    return jpq_jax.latent(optax.sgd(learning_rate), jpq_jax.pruning(1.0), pull=pull, **OPTIONS)


def project_params(learning_rate: optax.ScalarOrSchedule) -> Transformation:
    return optax.chain(
        optax.sgd(learning_rate), jpq_jax.project_params(jpq_jax.pruning(1.0), **OPTIONS)
    )


def admm_proximal(learning_rate: optax.ScalarOrSchedule, rho: float = 0.1) -> Transformation:
    pull = jpq_jax.admm(ALL_BITS, rho=rho, learning_rate=learning_rate, **OPTIONS)
    return optax.chain(optax.sgd(learning_rate), pull)


def admm_gradient(learning_rate: optax.ScalarOrSchedule, rho: float = 0.1) -> Transformation:
    pull = jpq_jax.admm(ALL_BITS, rho=rho, penalty="gradient", **OPTIONS)
    return optax.chain(pull, optax.sgd(learning_rate))


def admm_to(learning_rate: optax.ScalarOrSchedule, rho: float = 0.1) -> Transformation:
    pull = jpq_jax.admm_to(jpq_jax.clustering(8), rho=rho, **OPTIONS)
    return optax.chain(pull, optax.sgd(learning_rate))


def freeze_shares(learning_rate: optax.ScalarOrSchedule) -> Transformation:
    freeze = jpq_jax.freeze_shares(jpq_jax.clustering(8), 0.0, **OPTIONS)
    return optax.chain(optax.sgd(learning_rate), freeze)


def mask_updates(learning_rate: optax.ScalarOrSchedule) -> Transformation:
    mask = jpq_jax.mask_updates(where=OPTIONS["where"])
    return optax.chain(optax.sgd(learning_rate), mask)


def cluster_updates(learning_rate: optax.ScalarOrSchedule) -> Transformation:
    together = jpq_jax.cluster_updates(where=OPTIONS["where"])
    return optax.chain(optax.sgd(learning_rate), together)


OURS = {
    factory.__name__: factory
    for factory in (
        latent_joint,
        latent_joint_in_bytes,
        latent_pruning,
        project_params,
        admm_proximal,
        admm_gradient,
        admm_to,
        freeze_shares,
        mask_updates,
        cluster_updates,
    )
}
ROWS = [
    {
        "opt_name": name,
        "opt_kwargs": {"learning_rate": RATE},
        "wrapper_name": None,
        "wrapper_kwargs": None,
    }
    for name in OURS
]


def recorded(*tables: Any, **axes: Any) -> Callable[[Any], Any]:
    """In place of `absl.testing.parameterized.product`: leaves a method as it is, and its cases beside it."""

    def with_cases(method: Any) -> Any:
        named = [[{key: value} for value in values] for key, values in axes.items()]
        merged = [
            {k: v for part in parts for k, v in part.items()}
            for parts in itertools.product(*tables, *named)
        ]
        method.cases = merged
        return method

    return with_cases


def their_class() -> Any:
    """Their class of tests, made anew of their source with our table in place of theirs; None where optax has none."""
    spec = importlib.util.find_spec("optax.contrib._common_test")
    if spec is None or spec.origin is None:
        return None
    body = ast.parse(Path(spec.origin).read_text()).body
    first = next(i for i, node in enumerate(body) if isinstance(node, ast.ClassDef))
    names: dict[str, Any] = {"__name__": spec.name}

    def execute(nodes: list[ast.stmt]) -> None:
        exec(compile(ast.Module(nodes, []), spec.origin, "exec"), names)  # noqa: S102

    execute(body[:first])
    missing = [name for name in (*TABLES, "_get_opt_factory") if name not in names]
    assert not missing, f"optax's contract tests have no {missing} any more"
    names |= dict.fromkeys(TABLES, tuple(ROWS))
    names["_get_opt_factory"] = OURS.__getitem__
    base = names["parameterized"].TestCase
    names["parameterized"] = SimpleNamespace(TestCase=base, product=recorded)
    execute(body[first : first + 1])
    return names[body[first].name]


def cases() -> Iterator[Any]:
    tests = their_class()
    if tests is None:
        reason = f"optax {optax.__version__} ships no optax/contrib/_common_test.py"
        yield pytest.param(None, {}, marks=pytest.mark.skip(reason=reason))
        return
    for name, method in vars(tests).items():
        for case in getattr(method, "cases", []):
            if not (THOROUGH or is_quick(name, case)):
                continue
            label = "-".join(name_of(v) for v in case.values() if isinstance(v, str) or callable(v))
            yield pytest.param(
                getattr(tests(), name), case, id=f"{name}-{label}", marks=marks(name, case)
            )


def name_of(value: Any) -> str:
    return getattr(value, "__name__", str(value))


def is_quick(test: str, case: dict[str, Any]) -> bool:
    """One case of each of their tests for each of ours; of the long ones, the hardest, for a few."""
    if test == "test_optimizers":
        return case["target"].__name__ == "_setup_rosenbrock" and case["opt_name"] in QUICK
    if "wrap" in case:  # for wrappers, of which there are none in our table
        return not case["wrap"]
    return str(case.get("dtype", jnp.bfloat16)) in (str(jnp.bfloat16), "bfloat16")


def marks(test: str, case: dict[str, Any]) -> list[pytest.MarkDecorator]:
    if test != "test_optimizers":
        return []
    target = case["target"].__name__
    if case["opt_name"] in HOLDING_ZEROS and target != "_setup_parabola":
        return [pytest.mark.skip(reason="the start is 0, and what is 0 at the start is held there")]
    if case["opt_name"] == "latent_joint" and target == "_setup_rosenbrock":
        reason = "between plans a weight takes the value that its bin had at the last one"
        return [pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)]
    return []


@pytest.mark.parametrize(("test", "case"), list(cases()))
def test_contract(test: Callable[..., None], case: dict[str, Any]) -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        test(**case)
