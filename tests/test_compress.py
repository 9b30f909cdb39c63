"""Post-training compression: never above its budget, near it, and better the larger it is."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from compiled import THOROUGH
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jpq_jax
from jpq_jax import Budget, Codes, artifact, compress, dequantize
from jpq_jax.artifact import record


def model(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return (rng.laplace(size=shape) * np.exp2(-2 * rng.random(shape[-1]))).astype(np.float32)

    return {
        "conv": {"kernel": weights(3, 3, 4, 8), "bias": weights(8)},
        "norm": {"scale": 1 + weights(8) / 8, "mean": weights(8), "var": np.abs(weights(8))},
        "dense": {"kernel": weights(128, 40), "bias": weights(40)},
        "steps": np.array([7, 2**31 + 5], np.int64),
    }


def distortion(params: Any, codes: Any) -> float:
    """Of the kernels."""
    error = total = 0.0
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(dequantize(codes)), strict=True):
        if a.ndim > 1:
            error += float(((np.asarray(b, np.float64) - np.asarray(a, np.float64)) ** 2).sum())
            total += float((np.asarray(a, np.float64) ** 2).sum())
    return error / total


def size_of(codes: Any, extras: Any = None) -> int:
    return len(artifact.encode(codes, extras))


@pytest.mark.newest
@pytest.mark.parametrize("nbytes", [500, 900, 1500, 3000, 6000])
def test_the_budget_is_kept_and_used(nbytes: int):
    codes = compress(model(), Budget(nbytes=nbytes))
    assert 0.98 * nbytes <= size_of(codes) <= nbytes


def test_more_bytes_less_error():
    errors = [
        distortion(model(), compress(model(), Budget(nbytes=n))) for n in (400, 800, 1600, 3200)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 < 0.3 < errors[0]


def test_less_error_than_the_order_0_projection_in_the_same_file():
    params = model()
    kernels = {name: params[name] for name in ("conv", "dense")}
    theirs = jpq_jax.project(kernels, Budget(bits=6000), rate="coded")
    ours = compress(kernels, Budget(nbytes=size_of(theirs)))
    assert distortion(kernels, ours) < 0.9 * distortion(kernels, theirs)


def test_kernels_are_codes_and_the_others_arrays_of_their_own_dtype():
    codes = compress(model(), Budget(nbytes=1500))
    for path, leaf in jpq_jax.leaves_with_paths(codes):
        assert isinstance(leaf, Codes) == path.endswith("kernel")
    assert codes["steps"].dtype == np.int64
    np.testing.assert_array_equal(codes["steps"], model()["steps"])
    assert (np.asarray(codes["norm"]["var"]) > 0).all()


def test_a_budget_for_everything_gives_nearly_everything():
    params = model()
    codes = compress(params, Budget(nbytes=10**6))
    assert distortion(params, codes) < 1e-6
    for name in ("scale", "mean", "var"):
        np.testing.assert_allclose(codes["norm"][name], params["norm"][name], rtol=1e-3)


def test_a_kernel_of_many_values_is_an_array_within_the_budget():
    params = {"kernel": np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32)}
    codes = compress(params, Budget(nbytes=15_000))
    assert not isinstance(codes["kernel"], Codes)
    assert size_of(codes) <= 15_000
    assert distortion(params, codes) < 2e-5


def test_extras_count():
    extras = {"note": "x" * 200}
    codes = compress(model(), Budget(nbytes=1000), extras=extras)
    assert 0.95 * 1000 <= size_of(codes, extras) <= 1000


def test_what_the_user_leaves_alone_stays_to_the_bit():
    params = model()
    codes = compress(params, Budget(nbytes=2500), plan=lambda path, _: path == "dense/kernel")
    np.testing.assert_array_equal(codes["conv"]["kernel"], params["conv"]["kernel"])
    np.testing.assert_array_equal(codes["norm"]["var"], params["norm"]["var"])
    assert isinstance(codes["dense"]["kernel"], Codes)
    again = compress(
        params,
        Budget(nbytes=2500),
        plan=jpq_jax.plan_leaves(params, lambda path, _: path == "dense/kernel"),
    )
    assert artifact.encode(codes) == artifact.encode(again)


def test_a_plan_of_the_default_rule_is_the_default_rule():
    given = compress(model(), Budget(nbytes=1200), plan=jpq_jax.plan_leaves(model()))
    assert artifact.encode(given) == artifact.encode(compress(model(), Budget(nbytes=1200)))
    with pytest.raises(ValueError, match="got a plan of leaves"):
        compress(
            model(), Budget(nbytes=1200), plan=jpq_jax.plan_leaves({"kernel": np.ones((2, 2))})
        )


def test_same_input_same_file():
    files = {artifact.encode(compress(model(), Budget(nbytes=1200))) for _ in range(2)}
    assert len(files) == 1


class Linear(eqx.Module):
    weight: jax.Array
    bias: jax.Array


def test_any_pytree():
    weight, bias = jnp.asarray(model()["dense"]["kernel"]), jnp.ones(40)
    for params in (
        Linear(weight, bias),
        [weight, (bias,)],
        nnx.state(nnx.Linear(64, 20, rngs=nnx.Rngs(0))),
    ):
        codes = compress(params, Budget(nbytes=900))
        assert size_of(codes) <= 900
        dense = dequantize(codes)
        assert jax.tree.structure(dense) == jax.tree.structure(params)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        *(
            (dtype, scale)
            for dtype in (ml_dtypes.bfloat16, np.float32)
            for scale in (1e-30, 1, 1e4)
        ),
        *((np.float16, scale) for scale in (1e-3, 1, 1e4)),
    ],
)
def test_every_dtype_and_scale(dtype: type, scale: float):
    kernel = (np.random.default_rng(0).normal(size=(80, 50)) * scale).astype(dtype)
    codes = compress({"kernel": kernel}, Budget(nbytes=1500))
    dense = np.asarray(dequantize(codes)["kernel"])
    assert dense.dtype == dtype
    error = ((dense.astype(np.float64) - kernel.astype(np.float64)) ** 2).sum()
    assert error < 0.05 * (kernel.astype(np.float64) ** 2).sum()


@pytest.mark.filterwarnings("ignore::jpq_jax.post_training.UnusedBudgetWarning")
@settings(
    deadline=None, max_examples=25 if THOROUGH else 12, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.integers(0, 10**6), st.integers(60, 2000))
def test_never_above_the_budget(seed: int, nbytes: int):
    rng = np.random.default_rng(seed)
    params = {
        "a": {"kernel": rng.standard_cauchy((24, 16)).astype(np.float32)},
        "b": {"kernel": (rng.random((24, 16)) < 0.1).astype(np.float32), "bias": np.zeros(16)},
    }
    params["b"]["bias"] = rng.normal(size=16).astype(np.float32)
    least = size_of(jax.tree.map(np.zeros_like, params))
    if nbytes < 2 * least:
        return
    assert size_of(compress(params, Budget(nbytes=nbytes))) <= nbytes


def test_all_zeros():
    codes = compress({"kernel": np.zeros((30, 20), np.float32)}, Budget(nbytes=100))
    assert not np.asarray(dequantize(codes)["kernel"]).any()


def test_progress_is_told():
    told: list[tuple[int, int, int]] = []
    compress(model(), Budget(nbytes=900), progress=lambda *each: told.append(each))
    assert told[-1][1:] == (8, 8)
    assert sorted(told) == told


@pytest.mark.parametrize("budget", [Budget(ratio=10), Budget(bits=1000)])
def test_other_budgets_are_refused(budget: Budget):
    with pytest.raises(ValueError, match=r"expected Budget\(nbytes"):
        compress(model(), budget)


def test_too_small_a_budget_says_what_is_needed():
    with pytest.raises(ValueError, match="expected at least") as error:
        compress(model(), Budget(nbytes=20))
    least = int(str(error.value).split("at least ")[1].split(",")[0])
    assert size_of(compress(model(), Budget(nbytes=least))) <= least


def test_a_budget_that_no_reader_would_believe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(record, "FREE_ELEMENTS", 0)
    monkeypatch.setattr(record, "ELEMENTS_PER_BYTE", 8)
    elements = sum(leaf.size for leaf in jax.tree.leaves(model()))
    least = -(-elements // 8)
    with pytest.raises(ValueError, match=f"expected at least {least}, what"):
        compress(model(), Budget(nbytes=least - 1))
    codes = compress(model(), Budget(nbytes=least + 20))
    assert least <= artifact.decode(artifact.encode(codes)).nbytes <= least + 20


def test_bad_input_is_named():
    params = model()
    params["dense"]["kernel"][3, 4] = np.nan
    with pytest.raises(ValueError, match="leaf 'dense/kernel': got 1 NaN"):
        compress(params, Budget(nbytes=1000))
    with pytest.raises(ValueError, match="no leaf to compress"):
        compress({"bias": np.ones(3)}, Budget(nbytes=1000))
    treated = jpq_jax.Treatment(granularity=jpq_jax.Channels())
    with pytest.raises(ValueError, match=r"leaf 'dense/kernel': got Treatment\(granularity=Chan"):
        compress(
            model(),
            Budget(nbytes=1000),
            plan=lambda path, _: treated if "dense/k" in path else False,
        )
