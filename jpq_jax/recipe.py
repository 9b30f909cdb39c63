"""A recipe of several stages: each a transformation, how long it lasts, and what it takes over from the one before.

    stages = [
        Stage("prune", 4000, optax.chain(admm_to(pruning(0.02), rho=1e-2, every=400), sgd)),
        Stage("retrain", 4000, optax.chain(sgd, mask_updates()), inherit=projected),
        Stage("cluster", 4000, optax.chain(admm_to(clustering(2, zero=False), rho=1e-2, every=400), sgd, mask_updates())),
        Stage("retrain", 4000, optax.chain(sgd, cluster_updates()), inherit=projected),
    ]

which is the joint method of Ye et al., 2018 (arXiv 1811.01907). The loop is the user's own:

    run = begin(stages, params)
    while not is_over(stages, run):
        updates, state = stages[run.stage].optimizer.update(gradients, run.state, run.params)
        run = advance(stages, run._replace(params=optax.apply_updates(run.params, updates), state=state))

All that a run is stands in `Run`: saved, it goes on from any step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jpq_jax.finalize import finalize
from jpq_jax.vocabulary import PyTree, dequantize


def as_they_are(params: PyTree, state: Any) -> PyTree:
    """A stage that starts from the params that the one before it ended with."""
    del state
    return params


def projected(params: PyTree, state: Any) -> PyTree:
    """A stage that starts from what `finalize` makes of them: pruned weights are 0, clustered ones equal."""
    return dequantize(finalize(params, state))


class Stage(NamedTuple):
    """Attributes:
    name: for logs.
    steps: how many updates it lasts.
    optimizer: the whole transformation.
    inherit: from the params and the state in which the stage before it ended to the params that this one starts from.
    carry: fields of this optimizer's fresh state that take the value of a field of the last one's, as in
      `{"clustered_bits": "leaf_bits"}`.
    until: of the state, whether the stage may end before, such as `has_converged` of its `SplitState`; [] bool.
    """

    name: str
    steps: int
    optimizer: optax.GradientTransformationExtraArgs | optax.GradientTransformation
    inherit: Callable[[PyTree, Any], PyTree] = as_they_are
    carry: Mapping[str, str] = {}
    until: Callable[[Any], jax.Array] | None = None


class Run(NamedTuple):
    """Attributes:
    stage: which of the stages is going on; their number when all are over.
    step: updates of it so far.
    params: the params.
    state: of the stage's optimizer; at the end, of the last one's.
    """

    stage: int
    step: int
    params: PyTree
    state: Any


def begin(stages: Sequence[Stage], params: PyTree) -> Run:
    """Before the first update.

    Raises:
      ValueError: without a stage, or with one of less than one step.
    """
    if not stages or any(stage.steps < 1 for stage in stages):
        got = [(stage.name, stage.steps) for stage in stages]
        raise ValueError(f"got stages of steps {got}, expected one or more of at least 1 step")
    return Run(0, 0, params, stages[0].optimizer.init(params))


def advance(stages: Sequence[Stage], run: Run) -> Run:
    """After an update: counts it, and goes over to the next stage when this one is at its end.

    `until` is asked after every update, which waits for the device; without it, nothing does.

    Raises:
      ValueError: if all stages are over.
    """
    if is_over(stages, run):
        raise ValueError(f"got a run of which all {len(stages)} stages are over")
    stage, step = stages[run.stage], run.step + 1
    if step < stage.steps and not (stage.until is not None and bool(stage.until(run.state))):
        return run._replace(step=step)
    if run.stage + 1 == len(stages):
        return run._replace(stage=len(stages), step=0)
    return Run(run.stage + 1, 0, *started(stages[run.stage + 1], run.params, run.state))


def is_over(stages: Sequence[Stage], run: Run) -> bool:
    """Whether the last stage is."""
    return run.stage >= len(stages)


def started(stage: Stage, params: PyTree, state: Any) -> tuple[PyTree, Any]:
    """The params and the state that a stage starts with, from those in which the one before it ended.

    Raises:
      ValueError: if a field that is carried over is not exactly once in each of the two states, or has other shapes or dtypes
        in one than in the other; or as `inherit` does.
    """
    params = stage.inherit(params, state)
    fresh = stage.optimizer.init(params)
    for new, old in stage.carry.items():
        value, place = _field(stage, state, old), _field(stage, fresh, new)
        got, expected = (_shapes(tree) for tree in (value, place))
        if got != expected:
            raise ValueError(
                f"stage {stage.name!r}: {new!r} from {old!r}: got {got}, expected {expected}"
            )
        fresh = optax.tree.set(fresh, **{new: value})
    return params, fresh


def _field(stage: Stage, state: Any, name: str) -> Any:
    """The one field of this name."""
    found = [value for _, value in optax.tree.get_all_with_path(state, name)]
    if len(found) != 1:
        raise ValueError(
            f"stage {stage.name!r}: carries {name!r}: got {len(found)} fields of that name, expected 1"
        )
    return found[0]


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf).name), tree)


def like(stages: Sequence[Stage], stage: int, params: PyTree) -> Run:
    """The shapes of a run in a stage, to restore a checkpoint into. params: or their shapes."""
    last = min(stage, len(stages) - 1)
    return Run(stage, 0, params, jax.eval_shape(stages[last].optimizer.init, params))
