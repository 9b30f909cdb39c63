"""The table of transformations whose contract tests/test_conformance.py looks at. A new transformation is a new row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import jpq_jax

RATE = 0.1


class Row(NamedTuple):
    """Attributes:
    name: in the table.
    factory: the transformation's.
    options: what it is made with.
    place: in an optimizer: "first" or "last" in a chain, or the "whole" of it.
    number: a hyperparameter that may be a schedule.
    statics: what `optax.inject_hyperparams` must not take for numbers.
    of_params: a field of the state that is like the params, and a leaf in it that `map_params` finds.
    budgeted: it compresses, to a twentieth; otherwise it only shapes updates.
    counted: what the budget is of: bits in the paper metric, "weights" that are kept, or "bytes" of the file, then `NBYTES`.
    searching: fields of the state that only guide the next search: between values of equal merit rounding decides.
    of_planner: it stands for its planner, whose programs take long to compile: only what may depend on the plan is
      looked at, since the transformation has a row with another planner.
    alike: its program is for the greater part that of another row: looked at where they differ, and with JPQ_THOROUGH.
    """

    name: str
    factory: Callable[..., optax.GradientTransformationExtraArgs]
    options: dict[str, Any]
    place: str
    number: str | None = None
    statics: tuple[str, ...] = ("where", "every")
    of_params: str | None = None
    budgeted: bool = True
    counted: str = "bits"
    searching: tuple[str, ...] = ()
    of_planner: bool = False
    alike: bool = False

    def make(self, **options: Any) -> optax.GradientTransformationExtraArgs:
        return self.factory(**self.options | options)


BUDGET = jpq_jax.Budget(ratio=20)
NBYTES = 500
KEEP = 0.05  # of the weights
ADMM = {"budget": BUDGET, "rho": 0.5, "every": 2}
STATICS = ("where", "every", "start_bits")
SGD = optax.sgd(RATE, momentum=0.9)


def latent(pull: Any, budget_schedule: Any = None, every: int = 2, where: Any = None) -> Any:
    """With the budget's schedule among the options, which is the planner's."""
    planner = jpq_jax.pruning(KEEP, keep_schedule=budget_schedule)
    return jpq_jax.latent(SGD, planner, every=every, where=where, pull=pull)


def latent_joint(pull: Any, budget_schedule: Any = None, every: int = 2, where: Any = None) -> Any:
    planner = jpq_jax.joint(BUDGET, budget_schedule=budget_schedule)
    return jpq_jax.latent(SGD, planner, every=every, where=where, pull=pull)


def project_params(budget_schedule: Any = None, every: int = 2, where: Any = None) -> Any:
    planner = jpq_jax.pruning(KEEP, keep_schedule=budget_schedule)
    return jpq_jax.project_params(planner, every=every, where=where)


def latent_in_bytes(
    pull: Any, budget_schedule: Any = None, every: int = 2, where: Any = None
) -> Any:
    planner = jpq_jax.joint(jpq_jax.Budget(nbytes=NBYTES), budget_schedule=budget_schedule)
    return jpq_jax.latent(SGD, planner, every=every, where=where, pull=pull)


def admm_to(rho: Any, budget_schedule: Any = None, every: int = 2, where: Any = None) -> Any:
    planner = jpq_jax.pruning(KEEP, keep_schedule=budget_schedule)
    return jpq_jax.admm_to(planner, rho=rho, every=every, where=where)


def frozen(every: int = 2, where: Any = None) -> optax.GradientTransformationExtraArgs:
    return jpq_jax.freeze_shares(jpq_jax.clustering(2), 0.5, every=every, where=where)


TABLE = [
    Row(
        "admm-proximal",
        jpq_jax.admm,
        ADMM | {"learning_rate": RATE},
        "last",
        "rho",
        STATICS,
        "dual",
    ),
    Row(
        "admm-gradient",
        jpq_jax.admm,
        ADMM | {"penalty": "gradient"},
        "first",
        "rho",
        STATICS,
        "dual",
        alike=True,
    ),
    Row(
        "latent",
        latent,
        {"every": 2, "pull": 0.125},
        "whole",
        "pull",
        of_params="latents",
        counted="weights",
    ),
    Row(
        "latent-joint",
        latent_joint,
        {"every": 2, "pull": 0.125},
        "whole",
        "pull",
        of_params="latents",
        searching=("joint_levels", "joint_slot_bits"),
        of_planner=True,
        alike=True,
    ),
    Row(
        "latent-in-bytes",
        latent_in_bytes,
        {"every": 2, "pull": 0.125},
        "whole",
        "pull",
        of_params="latents",
        counted="bytes",
        of_planner=True,
    ),
    Row(
        "project-params",
        project_params,
        {"every": 2},
        "last",
        counted="weights",
    ),
    Row(
        "admm-to",
        admm_to,
        {"rho": 0.5, "every": 2},
        "first",
        "rho",
        ("where", "every"),
        "split_dual",
        counted="weights",
    ),
    Row("freeze-shares", frozen, {"every": 2}, "last", of_params="frozen", budgeted=False),
    Row(
        "mask-updates",
        jpq_jax.mask_updates,
        {},
        "last",
        of_params="support",
        budgeted=False,
    ),
    Row(
        "cluster-updates",
        jpq_jax.cluster_updates,
        {},
        "last",
        of_params="cluster_of",
        budgeted=False,
    ),
]
ROWS = {row.name: row for row in TABLE}
