"""The list of what users get wrong, and what they are told: the leaf or file, what was got, what was expected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jpq_jax
from experiments import data

BUDGET = jpq_jax.Budget(ratio=10)


def params() -> dict[str, Any]:
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)
    return {"dense": {"kernel": kernel, "bias": jnp.zeros(4)}, "steps": jnp.zeros([], jnp.int32)}


def spoiled(value: float) -> dict[str, Any]:
    tree = params()
    tree["dense"]["kernel"] = tree["dense"]["kernel"].at[2, 1].set(value)
    return tree


def admm(budget: jpq_jax.Budget = BUDGET, **options: Any) -> optax.GradientTransformationExtraArgs:
    return jpq_jax.admm(budget, **{"rho": 0.1, "every": 1, "learning_rate": 0.1} | options)


def saved(folder: Path) -> Path:
    path = folder / "model.jpq"
    jpq_jax.artifact.save(path, jpq_jax.project_alternating(params(), BUDGET), {})
    return path


def truncated(folder: Path) -> Any:
    path = saved(folder)
    path.write_bytes(path.read_bytes()[:-7])
    return jpq_jax.artifact.load(path)


def altered(folder: Path) -> Any:
    path = saved(folder)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # in the last leaf
    path.write_bytes(bytes(content))
    return jpq_jax.artifact.load(path)


def for_another_model(folder: Path) -> Any:
    return jpq_jax.artifact.load(saved(folder), like={"dense": {"kernel": jnp.zeros((8, 5))}})


def without_params(_: Path) -> Any:
    transformation = admm()
    return transformation.update(params(), transformation.init(params()))


def of_another_tree(_: Path) -> Any:
    return jpq_jax.finalize({"other": jnp.ones((8, 4))}, admm().init(params()))


def of_another_shape(_: Path) -> Any:
    tree = params()
    tree["dense"]["kernel"] = jnp.ones((8, 5))
    return jpq_jax.finalize(tree, admm().init(params()))


def projected(tree: Any, budget: jpq_jax.Budget = BUDGET, **options: Any) -> Callable[[Path], Any]:
    return lambda _: jpq_jax.project_alternating(tree, budget, **options)


def started(**options: Any) -> Callable[[Path], Any]:
    return lambda _: admm(**options).init(params())


MASK_OF_NOTHING = {"dense": {"kernel": False, "bias": False}, "steps": False}
MASK_OF_OTHERS = {"conv": {"kernel": True}}
MASK_OF_INTEGERS = {"dense": False, "steps": True}


def latent(tree: Any, budget: jpq_jax.Budget = BUDGET) -> Callable[[Path], Any]:
    planner = jpq_jax.joint(budget)
    return lambda _: jpq_jax.latent(optax.sgd(0.1), planner).init(tree)


def without_params_in(make: Callable[[], Any]) -> Callable[[Path], Any]:
    return lambda _: make().update(params(), make().init(params()))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "params missing from update": (without_params, "needs the params"),
    "params missing from update of latents": (
        without_params_in(lambda: jpq_jax.latent(optax.sgd(0.1), jpq_jax.joint(BUDGET))),
        "latent: update needs the params",
    ),
    "params missing from a projection": (
        without_params_in(lambda: jpq_jax.project_params(jpq_jax.joint(BUDGET))),
        "project_params: update needs the params",
    ),
    "params missing from masked updates": (
        without_params_in(jpq_jax.mask_updates),
        "mask_updates: update needs the params",
    ),
    "a pull of text": (
        lambda _: jpq_jax.latent(optax.sgd(0.1), jpq_jax.joint(BUDGET), pull="0.1"),  # pyright: ignore
        "latent: got pull='0.1', expected a finite number",
    ),
    "a negative pull of NumPy": (
        lambda _: jpq_jax.latent(optax.sgd(0.1), jpq_jax.joint(BUDGET), pull=np.float32(-1)),  # pyright: ignore
        "latent: got pull=.*-1.0.*at least 0",
    ),
    "a rho without end": (
        lambda _: jpq_jax.admm_to(jpq_jax.pruning(0.1), rho=float("inf"), every=2),
        "admm_to: got rho=inf",
    ),
    "a negative rho": (lambda _: admm(rho=-1.0), "admm: got rho=-1.0, expected a finite number"),
    "a learning rate that is none": (
        lambda _: admm(rho=1.0, learning_rate=float("nan")),
        "admm: got learning_rate=nan",
    ),
    "a number for the alternation's budget": (
        lambda _: jpq_jax.project_alternating(params(), 1000),  # pyright: ignore
        "project_alternating: got budget=1000, expected a jpq_jax.Budget",
    ),
    "nothing to mask": (
        lambda _: jpq_jax.mask_updates().init({"bias": jnp.zeros(3)}),
        "no leaf to compress: bias: 1 axis",
    ),
    "nothing to cluster": (
        lambda _: jpq_jax.cluster_updates().init({"bias": jnp.zeros(3)}),
        "no leaf to compress: bias: 1 axis",
    ),
    "nothing to compress by latents": (latent({"bias": jnp.zeros(3)}), "bias: 1 axis"),
    "NaN weights to project": (
        lambda _: jpq_jax.project(spoiled(np.nan), BUDGET),
        "'dense/kernel': got 1 NaN or infinite",
    ),
    "nothing to project": (lambda _: jpq_jax.project({}, BUDGET), "has no leaves"),
    "two budgets": (lambda _: jpq_jax.Budget(ratio=3, bits=5), "exactly one.*ratio.*bits"),
    "no budget": (lambda _: jpq_jax.Budget(), "exactly one"),
    "negative budget": (lambda _: jpq_jax.Budget(bits=-1), "bits.*at least 0; got -1"),
    "ratio of zero": (lambda _: jpq_jax.Budget(ratio=0), "ratio.*positive; got 0"),
    "NaN budget": (lambda _: jpq_jax.Budget(ratio=float("nan")), "nan"),
    "budget of text": (lambda _: jpq_jax.Budget(nbytes="3 kB"), "number; got '3 kB'"),  # pyright: ignore
    "bytes below what the file must hold": (
        projected(params(), jpq_jax.Budget(nbytes=19)),
        "19 bytes, expected at least 20.*'dense/bias' most, with 16",
    ),
    "bytes for a method that counts bits": (
        started(budget=jpq_jax.Budget(nbytes=10_000)),
        "expected ratio or bits",
    ),
    "two leaves of one path": (
        projected({"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((3, 3))}}),
        "leaf 'a/b': got 2 leaves of this path, expected one",
    ),
    "NaN weights": (projected(spoiled(np.nan)), "'dense/kernel': got 1 NaN or infinite"),
    "infinite weights": (projected(spoiled(np.inf)), "'dense/kernel': got 1 NaN or infinite"),
    "NaN weights at the end of training": (
        lambda _: jpq_jax.finalize(spoiled(np.nan), admm().init(params())),
        "'dense/kernel': got 1 NaN or infinite",
    ),
    "integer leaf selected": (
        started(where=MASK_OF_INTEGERS),
        "'steps': got dtype int32.*floating",
    ),
    "mask that selects nothing": (started(where=MASK_OF_NOTHING), "selects no leaf.*dense/bias"),
    "mask of another tree": (started(where=MASK_OF_OTHERS), "does not fit.*conv/kernel"),
    "predicate that selects nothing": (started(where=lambda path, leaf: False), "selects no leaf"),
    "empty tree": (projected({}), "no leaf to compress: it has no leaves"),
    "empty tree in update": (
        lambda _: admm().update({}, admm().init({}), {}),
        "no leaf to compress: it has no leaves",
    ),
    "nothing but biases": (projected({"bias": jnp.ones(3)}), "no leaf to compress: bias: 1 axis"),
    "a leaf that is no array": (
        projected({"kernel": "text"}),
        "'kernel': got str, expected an array",
    ),
    "a number for a budget": (started(budget=20), "budget=20, expected a jpq_jax.Budget"),
    "a number for the projection's budget": (
        lambda _: jpq_jax.project(params(), 20),  # pyright: ignore
        "project: got budget=20, expected a jpq_jax.Budget",
    ),
    "a number for the joint method's budget": (
        lambda _: jpq_jax.joint(20),  # pyright: ignore
        "joint: got budget=20, expected a jpq_jax.Budget",
    ),
    "a budget for a planner": (
        lambda _: jpq_jax.latent(optax.sgd(0.1), BUDGET).init(params()),  # pyright: ignore
        r"got planner=Budget\(.*expected one, such as",
    ),
    "endlessly many bytes": (
        lambda _: jpq_jax.Budget(nbytes=float("inf")),  # pyright: ignore
        "must be finite; got inf",
    ),
    "beyond float32": (
        lambda _: jpq_jax.project({"kernel": np.full((4, 4), 1e39)}, BUDGET),
        "'kernel': got 16 NaN or infinite weights",
    ),
    "half an update between plans": (
        lambda _: jpq_jax.latent(optax.sgd(0.1), jpq_jax.joint(BUDGET), every=2.5),  # pyright: ignore
        "latent: got every=2.5, expected at least 1, a whole number",
    ),
    "no epochs between projections": (started(every=0), "every=0, expected at least 1"),
    "bits out of range": (started(start_bits=9), "start_bits=9, expected 1 to 8"),
    "unknown penalty": (started(penalty="exact"), "'exact', expected 'proximal' or 'gradient'"),
    "proximal step without learning rate": (started(learning_rate=None), "learning_rate"),
    "state without admm": (
        lambda _: jpq_jax.finalize(params(), optax.sgd(0.1).init(params())),
        "no state of admm",
    ),
    "state of another tree": (of_another_tree, "state has a leaf 'dense/kernel'.*'other'"),
    "gradients of another tree": (
        lambda _: admm().update({"other": jnp.ones(3)}, admm().init(params()), params()),
        r"updates of shapes \[\(3,\)\].*dense/kernel",
    ),
    "codes to compress": (
        projected({"kernel": jpq_jax.project_alternating(params(), BUDGET)["dense"]["kernel"]}),
        "'kernel': got Codes, expected an array",
    ),
    "state of another shape": (of_another_shape, r"'dense/kernel': got shape \(8, 5\).*\(8, 4\)"),
    "unknown metric": (
        lambda _: jpq_jax.rate_bits(params(), "bytes"),  # pyright: ignore
        "'bytes', expected one of paper, coded, file",
    ),
    "truncated artifact": (truncated, "model.jpq: "),
    "altered artifact": (altered, "model.jpq: .*(checksum|damaged|CRC)"),
    "artifact of another model": (for_another_model, "model.jpq.*dense/(kernel|bias)"),
    "unknown data set": (lambda _: data.load("mnits"), "mnits.*mnist"),
    "wrong data directory": (lambda folder: data.load("mnist", folder), "mnist"),
    "missing data directory": (lambda folder: data.load("mnist", folder / "none"), "none"),
}


@pytest.mark.parametrize("what", BAD)
def test_is_told_what_is_wrong(what: str, tmp_path: Path) -> None:
    attempt, message = BAD[what]
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        attempt(tmp_path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError), match="dense/kernel"):
        jpq_jax.artifact.save(path, {"dense": {"kernel": object()}}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.jpq"]
