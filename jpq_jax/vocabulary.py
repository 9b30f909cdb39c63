"""The words everything else speaks: how big (`Budget`), what to do with a leaf (`LeafPlan`), and what a compressed leaf is (`Codes`).

A *compressed tree* is a parameter tree in which every compressed leaf is a `Codes`
and every other leaf is the array itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jpq_jax.granularity import Element, Granularity
from jpq_jax.sharding import lying_like

MAX_BITS = 8
LEVELS = 2**MAX_BITS + 1  # of a codebook: zero, then at most 2**MAX_BITS nonzero values
# Dtypes that NumPy and files have. `jax.dtypes.canonicalize_dtype` lets some of them through, and the transfer fails.
NOT_IN_JAX = frozenset(
    ("float6_e2m3fn", "float6_e3m2fn", "float8_e5m3fnu", "int1", "uint1", "complex32", "bcomplex32")
)
CODE_DTYPE = jnp.int16  # the smallest that holds LEVELS

PyTree = Any
KeyPath = tuple[Any, ...]  # as JAX gives it


class InfeasibleError(ValueError):
    """A budget that nothing keeps to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How big the model may be: exactly one of three numbers.

    Attributes:
      ratio: compression against float32 in the paper metric: sum of 32 n_i over sum of b_i nnz_i,
        over the compressed leaves.
      bits: the same as a total, sum of b_i nnz_i. `math.inf` asks for no limit.
      nbytes: of the final file, everything in it counted.

    Raises:
      ValueError: if not exactly one is given, or it is negative or NaN (a ratio: not positive; nbytes: infinite).
    """

    ratio: float | None = None
    bits: float | None = None
    nbytes: int | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        if len(given) != 1:
            raise ValueError(
                f"Budget takes exactly one of ratio, bits or nbytes; got {given or 'none'}"
            )
        [(name, value)] = given.items()
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise ValueError(f"Budget({name}=...) must be a number; got {value!r}")
        if not value >= 0 or (name == "ratio" and value == 0):
            lower = "positive" if name == "ratio" else "at least 0"
            raise ValueError(f"Budget({name}=...) must be {lower}; got {value}")
        if name == "nbytes" and value == math.inf:
            raise ValueError("Budget(nbytes=...) must be finite; got inf")
        if isinstance(value, np.generic):  # small NumPy types round and overflow in arithmetic
            object.__setattr__(self, name, value.item())


def check_budget(name: str, budget: Any) -> None:
    """Raises ValueError if it is none. name: of the function that it was given to."""
    if not isinstance(budget, Budget):
        raise ValueError(f"{name}: got budget={budget!r}, expected a jpq_jax.Budget")


_ELEMENT = Element()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Treatment:
    """How a leaf is compressed.

    Attributes:
      granularity: what is pruned as one: `Element()`, `NofM(n, m)`, `Block(shape)` or `Channels()`.
      grid: "codebook", any values, or "uniform", whole multiples of a step.
      scale: "leaf", or "channel": the values are those of the grid times a number for each output channel.
    """

    granularity: Granularity = _ELEMENT
    grid: Literal["codebook", "uniform"] = "codebook"
    scale: Literal["leaf", "channel"] = "leaf"

    def __post_init__(self) -> None:
        for name, got, expected in (
            ("grid", self.grid, ("codebook", "uniform")),
            ("scale", self.scale, ("leaf", "channel")),
        ):
            if got not in expected:
                raise ValueError(f"Treatment: got {name}={got!r}, expected one of {expected}")
        if not isinstance(self.granularity, Granularity):
            raise ValueError(
                f"Treatment: got granularity={self.granularity!r}, expected Element(), ..."
            )


_AS_USUAL = Treatment()


@dataclasses.dataclass(frozen=True)
class LeafPlan:
    """What is done with one leaf, and why.

    Attributes:
      path: the leaf's place in the tree, keys joined by "/".
      compress: prune and quantize the leaf, or store it as it is.
      why: the rule that decided, for the report.
      treatment: how, if it is compressed.
      rounded: whether a leaf that is stored may lose digits where the budget is of the file's bytes.
    """

    path: str
    compress: bool
    why: str
    treatment: Treatment = _AS_USUAL
    rounded: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Codes:
    """One compressed leaf. Codes are the truth; floats are derived from them by `dequantize`.

    Attributes:
      code: [...] int16, the leaf's shape; 0 = pruned, k > 0 = the weight is `codebook[k]`.
      codebook: [257] float32; `codebook[0]` is 0, entries 1..2**bits hold the nonzero values in
        ascending order, unused ones last and 0.
      bits: [] int32 in 1..8, what indexes the distinct nonzero values: ceil(log2(values)), at least 1.
      dtype: name of the leaf's own dtype, restored by `dequantize`.
      scale: float32, of as many axes as the leaf and a shape that broadcasts to its, by which the values are
        multiplied; None for 1.
    """

    code: jax.Array
    codebook: jax.Array
    bits: jax.Array
    dtype: str = dataclasses.field(metadata={"static": True})
    scale: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.code.shape

    @property
    def size(self) -> int:
        return math.prod(self.code.shape)


def dtype_name(leaf: Any) -> str:
    """The dtype that JAX gives the leaf's weights: float32 for a NumPy float64, unless x64 is enabled."""
    native = np.dtype(leaf.dtype.name)  # whatever the byte order
    return jax.dtypes.canonicalize_dtype(native).name


def is_codes(leaf: Any) -> bool:
    """For `is_leaf=`: stop at compressed leaves."""
    return isinstance(leaf, Codes)


def path_string(path: KeyPath) -> str:
    """A leaf's place in the tree as its keys joined by "/", for messages and reports."""
    return jax.tree_util.keystr(path, simple=True, separator="/") if path else "(root)"


def without_lone_values(paths: Sequence[KeyPath]) -> list[KeyPath]:
    """The paths of a tree's leaves as they are called.

    The array inside a Flax NNX variable is its attribute `value`, which says nothing: a lone `value` is left
    out, so that the leaves of an NNX state and of its plain dict have the same names.
    """
    inside = Counter(path[:depth] for path in paths for depth in range(1, len(path)))
    value = jax.tree_util.GetAttrKey("value")
    return [
        path[:-1] if path[-1:] == (value,) and inside[path[:-1]] == 1 else path for path in paths
    ]


def leaves_with_paths(
    tree: PyTree, is_leaf: Callable[[Any], bool] = is_codes
) -> list[tuple[str, Any]]:
    """The leaves of a (compressed) tree with their path strings, in JAX's order."""
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    paths = without_lone_values([path for path, _ in flat])
    return [(path_string(path), leaf) for path, (_, leaf) in zip(paths, flat, strict=True)]


def dequantize(codes: PyTree) -> PyTree:
    """Weights of a compressed tree, `codebook[code]` times the scale, in each leaf's own dtype; stored leaves pass through."""

    def weights(leaf: Any) -> Any:
        if not is_codes(leaf):
            return leaf
        look_up = lying_like(leaf.code, lambda codebook, code: codebook[code.astype(jnp.int32)])
        values = look_up(leaf.codebook, leaf.code)
        return (values if leaf.scale is None else values * leaf.scale).astype(leaf.dtype)

    return jax.tree.map(weights, codes, is_leaf=is_codes)


def validate(codes: PyTree) -> PyTree:
    """Checks concrete codes and returns the tree unchanged: shapes, dtypes, bits of 1 to 8, codes that the bits
    can index, finite values, and 0 as the value of a pruned weight.

    Raises:
      ValueError: naming the leaf, what was got and what was expected.
    """
    for path, leaf in leaves_with_paths(codes):
        if is_codes(leaf):
            _validate_leaf(path, leaf)
    return codes


def _validate_leaf(path: str, leaf: Codes) -> None:
    code, codebook = np.asarray(leaf.code), np.asarray(leaf.codebook)

    def expect(holds: bool, got: Any, expected: str) -> None:
        if not holds:
            raise ValueError(f"codes of leaf {path!r}: got {got}, expected {expected}")

    expect(_is_floating(leaf.dtype), f"dtype {leaf.dtype!r}", "the name of a floating dtype")
    expect(np.shape(leaf.bits) == (), f"bits of shape {np.shape(leaf.bits)}", "a scalar")
    bits = int(leaf.bits)
    expect(code.dtype == CODE_DTYPE, f"code dtype {code.dtype}", jnp.dtype(CODE_DTYPE).name)
    expect(codebook.dtype == np.float32, f"a codebook of {codebook.dtype}", "float32")
    expect(codebook.shape == (LEVELS,), f"a codebook of shape {codebook.shape}", f"({LEVELS},)")
    expect(1 <= bits <= MAX_BITS, f"{bits} bits", f"1 to {MAX_BITS}")
    expect(bool(np.isfinite(codebook).all()), "a value that is not finite", "finite values")
    is_zero = codebook[0] == 0 and not np.signbit(codebook[0])
    expect(is_zero, f"codebook[0] = {codebook[0]}", "0.0, the value of a pruned weight")
    values = codebook[codebook != 0]
    expect(bool((np.diff(values) > 0).all()), "values out of order", "ascending, distinct values")
    expect(not codebook[2**bits + 1 :].any(), f"values beyond {bits} bits", f"{2**bits} at most")
    if leaf.scale is not None:
        scale = np.asarray(leaf.scale)
        expect(scale.dtype == np.float32, f"a scale of {scale.dtype}", "float32")
        fits = scale.ndim == code.ndim and all(
            a in (1, b) for a, b in zip(scale.shape, code.shape, strict=True)
        )
        expect(fits, f"a scale of shape {scale.shape}", f"one that broadcasts to {code.shape}")
        expect(bool(np.isfinite(scale).all()), "a scale that is not finite", "finite ones")
    if code.size:
        low, high = int(code.min()), int(code.max())
        expect(low >= 0 and high <= 2**bits, f"codes {low} to {high}", f"0 to {2**bits}")


def _is_floating(name: Any) -> bool:
    try:
        return isinstance(name, str) and jnp.issubdtype(jnp.dtype(name), jnp.floating)
    except TypeError:
        return False
