"""A model's layers, which of their channels can only go together, and what a policy of bits costs.

A *slot* is what a channel is called across the layers that are tied by it: those that are added, as in a residual network, write to the
same slots. A slot lives while one of them gives it a bit; what is dead in all is taken out of the model by `shrink`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from numpy.typing import NDArray

from jpq_jax.plan import Where, plan_leaves
from jpq_jax.removal.labels import Labelled, label
from jpq_jax.removal.program import flat_program, shape_of
from jpq_jax.vocabulary import PyTree, leaves_with_paths

_CHANGES_NOTHING = frozenset(
    ["reshape", "squeeze", "broadcast_in_dim", "copy", "convert_element_type"]
)


class Layer(NamedTuple):
    """Attributes:
    path: of its kernel.
    leaf: the kernel's place among the leaves.
    channels: how many outputs it has.
    taps: weights of one input and one output.
    positions: how often each weight is used for one example.
    stride: of a convolution, over all its axes, as a product; 1 for others.
    inputs: [slots + 1], how many inputs each slot gives, and the last what is no slot.
    slots: [channels], where its outputs go; the number of slots for what cannot go.
    kind: "convolution", "grouped" or "dense".
    """

    path: str
    leaf: int
    channels: int
    taps: int
    positions: int
    stride: int
    inputs: NDArray[np.int64]
    slots: NDArray[np.int64]
    kind: str


class Network(NamedTuple):
    """Attributes:
    layers: those that a policy is for, in the program's order.
    slots: how many there are.
    of_axes: for each leaf and axis, which slot each index is, or `slots`.
    """

    layers: tuple[Layer, ...]
    slots: int
    of_axes: tuple[tuple[NDArray[np.int64], ...], ...]

    @property
    def slot_of(self) -> NDArray[np.int64]:
        """Of the channels of all layers, one layer after the other."""
        return np.concatenate([layer.slots for layer in self.layers])

    @property
    def layer_of(self) -> NDArray[np.int64]:
        """Likewise."""
        return np.repeat(np.arange(len(self.layers)), [layer.channels for layer in self.layers])

    @property
    def inputs_of(self) -> NDArray[np.float32]:
        """[layers, slots + 1], weights of one output that each slot gives."""
        return np.stack([layer.taps * layer.inputs for layer in self.layers]).astype(np.float32)


def network_of(
    apply: Callable[..., Any], params: PyTree, *inputs: Any, where: Where = None
) -> Network:
    """From the program of a model in use.

    Args:
      apply: (params, *inputs) -> outputs, as in `shrink`.
      params: dense weights, or their shapes.
      inputs: one example, in a batch of 1, or its shapes.
      where: which leaves a policy is for, as in `plan_leaves`.

    Raises:
      ValueError: if there is none, or naming one of them that is not the kernel of a convolution or a product with its outputs last.
    """
    program, _ = flat_program(apply, params, *inputs)
    leaves = leaves_with_paths(params)
    labelled = label(program, len(leaves))
    planned = [
        p.compress and math.prod(jnp.shape(leaf)) > 0
        for p, (_, leaf) in zip(plan_leaves(params, where), leaves, strict=True)
    ]
    found = _kernels(program, len(leaves), planned)
    if not any(planned):
        raise ValueError(f"found no kernel of a layer among {[path for path, _ in leaves]}")
    for leaf, (path, _) in enumerate(leaves):
        if planned[leaf] and not _has_outputs_last(program, labelled, leaf, found.get(leaf, [])):
            raise ValueError(
                f"leaf {path!r}: expected the kernel of a convolution or a product, with its outputs last; leave it out by where="
            )
    held = labelled.atoms.reasons()
    roots = [labelled.roots(var) for var in program.jaxpr.invars[: len(leaves)]]
    free = {int(root) for leaf in found for root in roots[leaf][-1] if int(root) not in held}
    slot_of = {root: i for i, root in enumerate(sorted(free))}

    def slots(labels: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([slot_of.get(int(root), len(slot_of)) for root in labels], np.int64)

    layers = [
        _layer(leaves[leaf][0], leaf, uses, labelled, slots, len(slot_of))
        for leaf, uses in found.items()
    ]
    of_axes = tuple(tuple(slots(labels) for labels in axes) for axes in roots)
    return Network(tuple(layers), len(slot_of), of_axes)


class Costs(NamedTuple):
    """Of a model under a policy; [] float32 each.

    Attributes:
      bits: of the weights that are left, zeros among them, each at its channel's bit-width.
      macs: multiplications and additions by the kernels' weights for one example.
      bit_operations: these, by the bits of the weight and those of the activation.
    """

    bits: jax.Array
    macs: jax.Array
    bit_operations: jax.Array


def alive(network: Network, policy: jax.Array) -> jax.Array:
    """[slots + 1] bool, which slots live; the last always does. policy: [channels of all layers] int32 in 0..8."""
    most = jnp.zeros(network.slots + 1, jnp.int32).at[network.slot_of].max(policy)
    return (most > 0).at[-1].set(True)


def costs(network: Network, policy: jax.Array, activation_bits: int = 32) -> Costs:
    """policy: as for `alive`."""
    living = alive(network, policy).astype(jnp.float32)
    bits = _of_living_inputs(network, living, policy.astype(jnp.float32))
    outputs = _of_living_inputs(network, living, living[network.slot_of])
    positions = jnp.asarray([layer.positions for layer in network.layers], jnp.float32)
    return Costs(
        jnp.sum(bits), jnp.sum(positions * outputs), activation_bits * jnp.sum(positions * bits)
    )


def coded_bits(network: Network, lengths: jax.Array, policy: jax.Array) -> jax.Array:
    """[] float32: of the weights that are left, where each takes so many. lengths: [9, channels of all layers], by bit-width."""
    each = jnp.take_along_axis(lengths, policy[None], axis=0)[0]
    living = alive(network, policy).astype(jnp.float32)
    return jnp.sum(_of_living_inputs(network, living, each))


def _of_living_inputs(network: Network, living: jax.Array, each: jax.Array) -> jax.Array:
    """[layers], what a weight has of each channel, summed over its weights. living: [slots + 1]; each: [channels of all layers]."""
    inputs = jnp.matmul(network.inputs_of, living, precision="highest")
    return inputs * jnp.zeros(len(network.layers), jnp.float32).at[network.layer_of].add(each)


def by_path(network: Network, policy: jax.Array) -> dict[str, jax.Array]:
    """Each layer's part, as `channelwise` takes it."""
    ends = np.cumsum([layer.channels for layer in network.layers])
    parts = jnp.split(policy, ends[:-1])
    return {layer.path: part for layer, part in zip(network.layers, parts, strict=True)}


def without_dead(network: Network, params: PyTree, living: jax.Array) -> PyTree:
    """The params with zeros at all that belongs to a dead slot, biases and norms included. living: as from `alive`."""
    leaves, structure = jax.tree.flatten(params)
    new = []
    for leaf, axes in zip(leaves, network.of_axes, strict=True):
        for axis, slots in enumerate(axes):
            if (slots < network.slots).any():
                shape = [-1 if i == axis else 1 for i in range(len(axes))]
                leaf = jnp.where(living[slots].reshape(shape), leaf, jnp.zeros([], leaf.dtype))
        new.append(leaf)
    return jax.tree.unflatten(structure, new)


def _kernels(
    program: ClosedJaxpr, count: int, planned: Sequence[bool]
) -> dict[int, list[tuple[JaxprEqn, int]]]:
    """For each leaf, where it is multiplied by: the equation, and which operand of it."""
    made_by = {var: eqn for eqn in program.jaxpr.eqns for var in eqn.outvars}
    leaf_of = {var: i for i, var in enumerate(program.jaxpr.invars[:count])}
    found: dict[int, list[tuple[JaxprEqn, int]]] = {}
    for eqn in program.jaxpr.eqns:
        if eqn.primitive.name not in ("dot_general", "conv_general_dilated"):
            continue
        for i, atom in enumerate(eqn.invars):
            leaf = leaf_of.get(_origin(atom, made_by))
            if leaf is not None and planned[leaf]:
                found.setdefault(leaf, []).append((eqn, i))
    return found


def _origin(atom: Var | Literal, made_by: dict[Var, JaxprEqn]) -> Any:
    while not isinstance(atom, Literal) and atom in made_by:
        eqn = made_by[atom]
        if eqn.primitive.name not in _CHANGES_NOTHING:
            return None
        atom = eqn.invars[0]
    return atom


def _outputs_axis(eqn: JaxprEqn, operand: int) -> int:
    """Of a kernel, as the equation sees it."""
    if eqn.primitive.name == "conv_general_dilated":
        return eqn.params["dimension_numbers"].rhs_spec[0]
    summed, batch = (part[operand] for part in eqn.params["dimension_numbers"])
    free = [a for a in range(len(shape_of(eqn.invars[operand]))) if a not in (*summed, *batch)]
    return free[-1] if free else -1


def _has_outputs_last(
    program: ClosedJaxpr, labelled: Labelled, leaf: int, uses: list[tuple[JaxprEqn, int]]
) -> bool:
    last = labelled.roots(program.jaxpr.invars[leaf])[-1]
    return bool(uses) and all(
        np.array_equal(labelled.roots(eqn.invars[operand])[_outputs_axis(eqn, operand)], last)
        for eqn, operand in uses
    )


def _layer(
    path: str,
    leaf: int,
    uses: list[tuple[JaxprEqn, int]],
    labelled: Labelled,
    slots: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    count: int,
) -> Layer:
    eqn, operand = uses[0]
    kernel = eqn.invars[operand]
    shape, roots = shape_of(kernel), labelled.roots(kernel)
    positions = sum(_positions(eqn, operand) for eqn, operand in uses)
    if eqn.primitive.name == "conv_general_dilated":
        out, into, *places = eqn.params["dimension_numbers"].rhs_spec
        groups = eqn.params["feature_group_count"]
        inputs = np.zeros(count + 1, np.int64)
        if groups == 1:
            np.add.at(inputs, slots(roots[into]), 1)
        else:
            inputs[-1] = shape[into]
        kind = "convolution" if groups == 1 else "grouped"
        taps = math.prod(shape[axis] for axis in places)
        stride = math.prod(eqn.params["window_strides"])
        return Layer(
            path, leaf, shape[out], taps, positions, stride, inputs, slots(roots[out]), kind
        )
    summed = eqn.params["dimension_numbers"][0][operand]
    free = [axis for axis in range(len(shape)) if axis not in summed]
    each = [slots(roots[axis]) for axis in summed]
    along = max(range(len(summed)), key=lambda i: int((each[i] < count).sum()))
    inputs = np.zeros(count + 1, np.int64)
    np.add.at(inputs, each[along], 1)
    others = [axis for i, axis in enumerate(summed) if i != along]
    taps = math.prod(shape[axis] for axis in (*others, *free[:-1]))
    return Layer(
        path, leaf, shape[free[-1]], taps, positions, 1, inputs, slots(roots[free[-1]]), "dense"
    )


def _positions(eqn: JaxprEqn, operand: int) -> int:
    """How many outputs there are of each that has weights of its own."""
    kernel, outputs = shape_of(eqn.invars[operand]), math.prod(shape_of(eqn.outvars[0]))
    if eqn.primitive.name == "conv_general_dilated":
        return outputs // kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    summed = eqn.params["dimension_numbers"][0][operand]
    return outputs // math.prod(size for axis, size in enumerate(kernel) if axis not in summed)
