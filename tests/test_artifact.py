"""The artifact: trees come back as they were, the same bytes everywhere, and a failed write changes nothing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import files
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

from jpq_jax import artifact
from jpq_jax.artifact import record
from jpq_jax.vocabulary import LEVELS, Codes, dequantize, leaves_with_paths

GOLDEN = Path(__file__).parent / "golden"


def compress(tree: Any) -> Any:
    """Codes for every leaf of two or more dims, the others left alone."""
    return jax.tree.map(lambda x: files.random_codes(x.shape) if x.ndim >= 2 else x, tree)


class Pair(NamedTuple):
    first: Any
    second: Any


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)


def nnx_tree() -> Any:
    return compress(nnx.state(Net(nnx.Rngs(0))))


class Attention(eqx.Module):
    key: Any
    value: Any


def equinox_tree() -> Any:
    keys = jax.random.split(jax.random.key(0), 2)
    relu = eqx.nn.Lambda(jax.nn.relu)
    net = eqx.nn.Sequential(
        [eqx.nn.Linear(3, 4, key=keys[0]), relu, eqx.nn.MLP(4, 2, 3, 1, key=keys[1])]
    )
    return compress(eqx.filter(net, eqx.is_array))


def dict_tree() -> Any:
    return {
        "b": {"kernel": files.random_codes((5, 5, 1, 4)), "bias": jnp.arange(4.0)},
        "a": jnp.ones(3),
    }


TREES = {
    "dict": dict_tree,
    "ordered": lambda: OrderedDict(z=files.random_codes((3,)), a=jnp.ones(2)),
    "linen": lambda: FrozenDict({"params": dict_tree()}),
    "list": lambda: [files.random_codes((3, 2)), (jnp.ones(2), None, {"x": jnp.zeros(())})],
    "twelve": lambda: [jnp.full(1, i) for i in range(12)],
    "integer keys": lambda: {10: jnp.ones(1), 9: {-1: files.random_codes((2,))}},
    "odd keys": lambda: {"a/b": jnp.ones(1), "a": {"b": jnp.zeros(1)}, "é\ud800\n\"'": jnp.ones(2)},
    "namedtuple": lambda: Pair(files.random_codes((2, 2)), [jnp.ones(2)]),
    "root": lambda: files.random_codes((4, 4)),
    "root array": lambda: jnp.ones(3),
    "empty": dict,
    "nnx": nnx_tree,
    "equinox": equinox_tree,
    "attribute value": lambda: {
        "a": Attention(files.random_codes((2, 3)), jnp.ones(2)),
        "b": Attention(None, jnp.ones(3)),
    },
}


@pytest.fixture(params=TREES, ids=str)
def tree(request: pytest.FixtureRequest) -> Any:
    return TREES[request.param]()


# Round trips


def test_tree_comes_back_in_the_structure_of_like(tree: Any, tmp_path: Path):
    path = tmp_path / "net.jpq"
    nbytes = artifact.save(path, tree, {"config": "lenet5"})
    loaded = artifact.load(path, like=dequantize(tree))
    files.assert_same(loaded.codes, tree)
    assert loaded.extras == {"config": "lenet5"}
    assert loaded.nbytes == nbytes == path.stat().st_size


def test_like_may_be_shapes_or_codes(tree: Any):
    data = artifact.encode(tree)
    shapes = jax.eval_shape(lambda: dequantize(tree))
    files.assert_same(artifact.decode(data, like=shapes).codes, tree)
    files.assert_same(artifact.decode(data, like=tree).codes, tree)


def test_bytes_are_the_same_after_a_round_trip_without_like(tree: Any):
    data = artifact.encode(tree, {"b": 1, "a": [0.1, None, {"é": True}]})
    codes, extras, _ = artifact.decode(data)
    assert artifact.encode(codes, extras) == data


def test_tree_is_rebuilt_from_its_paths():
    w, x = jnp.ones(1), jnp.zeros(2)
    tree = {"pair": Pair(w, (None, x)), "layers": {0: w, 1: {"0": x}}}
    expected = {"pair": {"first": w, "second": (None, x)}, "layers": {0: w, 1: {"0": x}}}
    files.assert_same(artifact.decode(artifact.encode(tree)).codes, expected)


def test_nnx_states_and_their_dicts_have_the_same_file():
    state = nnx.state(Net(nnx.Rngs(0)))
    data = artifact.encode(compress(state))
    plain = nnx.to_pure_dict(state)
    assert artifact.encode(compress(plain)) == data
    files.assert_same(artifact.decode(data).codes, compress(plain))


def test_same_bytes_in_another_process_and_for_other_orders():
    program = (
        "from jpq_jax import artifact; import jax.numpy as jnp;"
        "tree = {k: jnp.arange(3.0) for k in 'cab'};"
        "print(artifact.encode(tree, {k: 1 for k in 'cab'}).hex())"
    )
    root = Path(artifact.__file__).parents[2]
    env = os.environ | {"PYTHONHASHSEED": "7", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    run = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    here = artifact.encode({k: jnp.arange(3.0) for k in "abc"}, dict.fromkeys("bca", 1))
    assert bytes.fromhex(run.stdout.strip()) == here


def test_leaf_bytes_add_up_to_the_file(tree: Any, tmp_path: Path):
    sizes = artifact.leaf_bytes(tree, {"epoch": 3})
    assert sum(n for _, n in sizes.leaves) + sizes.container == sizes.nbytes
    assert sizes.nbytes == artifact.save(tmp_path / "net.jpq", tree, {"epoch": 3})
    assert len(sizes.leaves) == len(leaves_with_paths(tree))


# Writing


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_failed_write_leaves_the_old_file(name: str, tmp_path: Path, monkeypatch):
    path = tmp_path / "net.jpq"
    artifact.save(path, [jnp.ones(3)])
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="disk full"):
        artifact.save(path, [jnp.zeros(3)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_save_replaces_and_leaves_nothing_beside(tmp_path: Path):
    path = tmp_path / "net.jpq"
    artifact.save(path, [jnp.ones(3)])
    artifact.save(str(path), [jnp.zeros(3)])
    files.assert_same(artifact.load(str(path)).codes, [jnp.zeros(3)])
    assert list(tmp_path.iterdir()) == [path]


def test_save_needs_its_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        artifact.save(tmp_path / "nowhere" / "net.jpq", [jnp.ones(3)])


@jax.tree_util.register_pytree_with_keys_class
class Twins:
    """A node that gives both children the same key."""

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.DictKey("x"), jnp.ones(1))] * 2, None

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> Twins:
        return cls()


def deep_tree(depth: int) -> Any:
    tree = jnp.ones(1)
    for _ in range(depth):
        tree = [tree]
    return tree


def altered(**fields: Any) -> Codes:
    good = files.make_codes([0, 1])
    return Codes(
        **{k: fields.get(k, getattr(good, k)) for k in ("code", "codebook", "bits", "dtype")}
    )


BAD_TREES = [
    ({"a": {"b": 1.0}}, TypeError, "leaf 'a/b': got float"),
    ({"a": "text"}, TypeError, "leaf 'a': got str"),
    ({"a": jax.nn.relu}, TypeError, "leaf 'a': got"),
    ({"a": jax.ShapeDtypeStruct((2,), jnp.float32)}, TypeError, "leaf 'a': got ShapeDtypeStruct"),
    ({"a": jax.random.key(0)}, TypeError, "leaf 'a': got dtype key<fry>"),
    ({"a": np.array(["x"])}, TypeError, "leaf 'a': got dtype <U1"),
    ({"a": np.array([None])}, TypeError, "leaf 'a': got dtype object"),
    ({(1, 2): jnp.ones(1)}, TypeError, r"got the key DictKey\(key=\(1, 2\)\)"),
    ({True: jnp.ones(1)}, TypeError, "got the key"),
    (Twins(), ValueError, "leaf 'x': two leaves have this path"),
    (deep_tree(101), ValueError, "got 101 steps"),
    ({"a": altered(code=jnp.array([9], jnp.int16))}, ValueError, "codes of leaf 'a'"),
    ({"a": altered(codebook=np.zeros(LEVELS))}, ValueError, "'a': got a codebook of float64"),
    ({"a": altered(codebook=-jnp.zeros(LEVELS))}, ValueError, r"codebook\[0\] = -0.0"),
    ({"a": altered(dtype="float31")}, ValueError, "'a': got dtype 'float31'"),
]


@pytest.mark.parametrize(("tree", "kind", "message"), BAD_TREES, ids=lambda x: str(x)[:30])
def test_bad_tree_is_named_and_nothing_written(tree: Any, kind: type, message: str, tmp_path):
    path = tmp_path / "net.jpq"
    artifact.save(path, [jnp.ones(1)])
    before = path.read_bytes()
    with pytest.raises(kind, match=message):
        artifact.save(path, tree)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_compressed_beyond_belief_is_filled_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(record, "FREE_ELEMENTS", 10**6)
    tree = {"a": files.make_codes(np.zeros((2, 10**6)), ()), "mask": np.ones((10, 10**5), bool)}
    data = artifact.encode(tree)
    assert len(data) == 2 * 10**6 // 1024 + 1
    files.assert_same(artifact.decode(data).codes, tree)


CONTAINERS = {
    "a stax classifier": [(np.ones(2), np.zeros(2)), (), (np.ones(2), np.zeros(2)), ()],
    "None": {"a": None, "b": np.ones(1)},
    "empty": {"a": {}, "b": [], "c": (), "d": np.ones(1)},
    "nothing else": {"a": [None, (), {"b": {}}]},
    "the end of a list": [np.ones(1), None, {}, []],
    "a tuple in a tuple": ((np.ones(1), (np.ones(1),)), [()]),
    "integer keys": {0: (np.ones(1),), -1: {}},
    "root": (),
}


@pytest.mark.parametrize("tree", CONTAINERS.values(), ids=CONTAINERS)
def test_places_without_leaves_and_tuples_come_back(tree: Any):
    data = artifact.encode(tree)
    codes = artifact.decode(data).codes
    assert jax.tree.structure(codes) == jax.tree.structure(tree)
    assert artifact.encode(codes) == data


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (Pair(np.ones(1), ()), {"first": np.ones(1), "second": ()}),
        ({"a": optax.MaskedNode(), "b": optax.EmptyState()}, {"a": (), "b": ()}),
        (OrderedDict(a=OrderedDict()), {"a": {}}),
        (FrozenDict({"a": FrozenDict({})}), {"a": {}}),
        (eqx.nn.Linear(2, 2, use_bias=False, key=jax.random.key(0)), None),
    ],
    ids=["named tuple", "empty named tuples", "ordered", "frozen", "equinox"],
)
def test_other_containers_come_back_as_dicts(tree: Any, expected: Any):
    if isinstance(tree, eqx.Module):
        expected = {"weight": tree.weight, "bias": None}
    got = artifact.decode(artifact.encode(tree)).codes
    assert jax.tree.structure(got) == jax.tree.structure(expected)


def nested(depth: int, around: Callable[[Any], Any] = lambda value: [value]) -> Any:
    """An empty list within so many of what `around` makes."""
    value: Any = []
    for _ in range(depth):
        value = around(value)
    return value


BAD_EXTRAS = [
    ([1], TypeError, "extras: got list"),
    ({"x": jnp.ones(1)}, ValueError, "not JSON serializable"),
    ({"x": math.nan}, ValueError, "not JSON compliant"),
    ({"x": {1: 2}}, ValueError, "extras change when written as JSON"),
    ({"x": (1, 2)}, ValueError, "extras change when written as JSON"),
    ({"x": nested(5000)}, ValueError, "extras"),  # from Python 3.12 on, JSON goes as deep
    ({"x": nested(99)}, ValueError, "extras are nested more than 100 deep"),
    ({"x": nested(99, lambda value: {"x": value})}, ValueError, "nested more than 100 deep"),
    ({"x": nested(50, lambda value: [1, {"x": value}])}, ValueError, "more than 100 deep"),
    ({"x": 1, 2: 3}, ValueError, "extras"),
]


@pytest.mark.parametrize(("extras", "kind", "message"), BAD_EXTRAS, ids=range(len(BAD_EXTRAS)))
def test_bad_extras(extras: Any, kind: type, message: str):
    with pytest.raises(kind, match=message):
        artifact.encode([], extras)


@pytest.mark.parametrize("around", [lambda value: [value], lambda value: {"x": value}])
def test_extras_as_deep_as_any_python_reads(around: Callable[[Any], Any]):
    extras = {"x": nested(98, around), "y": [[], {}]}
    assert artifact.decode(artifact.encode([], extras)).extras == extras


# Reading what does not fit


LIKES = [
    ({"a": jnp.ones(3)}, "leaf 'b/kernel': in the file, not in `like`"),
    (dict_tree() | {"c": jnp.ones(1)}, "leaf 'c': in `like`, not in the file"),
    (dict_tree() | {"a": jnp.ones(4)}, r"leaf 'a': got shape \(3,\), expected \(4,\)"),
    (dict_tree() | {"a": jnp.ones(3, jnp.int32)}, "leaf 'a': got dtype float32, expected int32"),
    (dict_tree() | {"a": jax.nn.relu}, "leaf 'a' of `like`: got .*, expected an array"),
    (dict_tree() | {"a": 1.0}, "leaf 'a' of `like`: got float, expected an array"),
    ([jnp.ones(3)], "leaf '0': in `like`, not in the file"),
]


@pytest.mark.parametrize(("like", "message"), LIKES, ids=range(len(LIKES)))
def test_like_must_fit(like: Any, message: str):
    if "surplus" in message or "not in `like`" in message:
        like = like | {"b": {"bias": jnp.ones(4)}}
    with pytest.raises(ValueError, match="<bytes>: " + message):
        artifact.decode(artifact.encode(dict_tree()), like=like)


def test_like_must_fit_in_dtype_for_codes_too():
    data = artifact.encode({"w": files.make_codes([1, 0], dtype="bfloat16")})
    with pytest.raises(ValueError, match="leaf 'w': got dtype bfloat16, expected float32"):
        artifact.decode(data, like={"w": jnp.ones(2)})


def test_strings_and_integers_are_different_keys():
    with pytest.raises(ValueError, match="not in the file"):
        artifact.decode(artifact.encode({"0": jnp.ones(1)}), like={0: jnp.ones(1)})


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        artifact.load(tmp_path / "none.jpq")


# The format


def golden_floats() -> Any:
    return {
        "multiples": jnp.asarray(np.arange(-20, 20) * np.float32(0.3)),
        "rounded": jnp.asarray([1.5, -0.15625, 0.0, 3.0, 48.0, 0.046875], jnp.bfloat16),
    }


def golden_many() -> Any:
    """Enough numbers on columns of two sizes for the kind that version 2 does not know."""
    place = np.arange(96 * 96).reshape(96, 96)
    code = np.where(place % 96 < 48, 1, np.where(place % 5 == 0, 4, 3))
    return {"many": files.make_codes(code, np.arange(1, 5) / 4)}


def golden_lossless() -> Any:
    """All that version 3 does not know."""
    rng = np.random.default_rng(0)
    outliers = np.append(np.arange(1, 9) / 4, [100.1, 3e38])
    return {
        "floats": rng.standard_normal((20, 30)).astype(np.float32),
        "rounded on a grid": (np.rint(rng.standard_normal((64, 16)) * 256) / 256).astype(
            np.float32
        ),
        "half": rng.standard_normal((20, 30)).astype(np.float16),
        "mask": np.triu(np.full((16, 16), -np.inf, np.float32), 1),
        "position_ids": np.arange(512, dtype=np.int64)[None],
        "integers": rng.integers(-(2**40), 2**40, 50),
        "outliers": files.make_codes(np.arange(60).reshape(6, 10) % 11, outliers, bits=4),
        "stax": [(jnp.ones(2), jnp.zeros(2)), (), [None, {}, []]],
    }


GOLDEN_PARTS = {2: dict, 3: golden_many, 4: lambda: golden_many() | golden_lossless()}


@pytest.mark.newest
@pytest.mark.parametrize("version", GOLDEN_PARTS)
def test_every_version_is_what_it_was(version: int):
    path = GOLDEN / f"v{version}.jpq"
    codes, extras, nbytes = artifact.load(path)
    files.assert_same(codes, files.golden_tree() | golden_floats() | GOLDEN_PARTS[version]())
    assert extras == files.GOLDEN_EXTRAS
    assert nbytes == path.stat().st_size
    again = artifact.encode(codes, extras)
    files.assert_same(artifact.decode(again).codes, codes)
    assert again == path.read_bytes() or version < 4
