"""What an error of each weight costs: the diagonal of the Fisher information, from a model's own gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.vocabulary import PyTree


def diagonal_fisher(
    loss: Callable[[PyTree, Any], jax.Array], params: PyTree, examples: PyTree, *, batch: int = 32
) -> PyTree:
    """Mean over the examples of the squared gradient of each one's loss, for `project(curvature=...)`.

    With the labels of a data set for targets this is the empirical Fisher information (Kunstner et al., 2019,
    arXiv 1905.12558); with targets drawn from the model, the true one. Near a minimum, h_i e^2 / 2 is about what an
    error e of weight i adds to the loss.

    Args:
      loss: (params, one example) -> [] its loss, a negative log-likelihood. Pure.
      params: any pytree of arrays; gradients are taken to its floating leaves.
      examples: pytree of arrays, [examples, ...] each.
      batch: so many are looked at together; memory grows with it. The rest of the examples, if they are not a
        multiple of it, is looked at by itself.

    Returns:
      Like `params`, float32; 0 for leaves that are not floating.

    Raises:
      ValueError: there are no examples, their numbers differ, or `batch` is below 1.
    """
    numbers = {len(leaf) for leaf in jax.tree.leaves(examples)}
    if len(numbers) != 1 or min(numbers) == 0 or batch < 1:
        raise ValueError(
            f"got batch={batch} and {sorted(numbers)} examples, expected at least 1 and one number"
        )
    [number] = numbers

    def squares(example: Any) -> PyTree:
        gradients = jax.grad(loss, allow_int=True)(params, example)
        return jax.tree.map(_square, gradients, params)

    def of_batch(batch: Any) -> PyTree:
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(squares)(batch))

    whole = number // batch * batch
    rounds, rest = (
        jax.tree.map(lambda x, part=part: jnp.asarray(x)[part], examples)
        for part in (slice(whole), slice(whole, number))
    )
    total = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), params)
    if whole:
        cut = jax.tree.map(lambda x: x.reshape(-1, batch, *x.shape[1:]), rounds)

        def add(total: PyTree, batch: Any) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, of_batch(batch)), None

        total, _ = lax.scan(add, total, cut)
    if whole < number:
        total = jax.tree.map(jnp.add, total, of_batch(rest))
    return jax.tree.map(lambda x: x / number, total)


def _square(gradient: jax.Array, leaf: Any) -> jax.Array:
    if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
        return jnp.zeros(jnp.shape(leaf), jnp.float32)
    return gradient.astype(jnp.float32) ** 2
