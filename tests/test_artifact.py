"""The artifact: exact, the same bytes everywhere, and no harm in a file from anyone."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jpq_jax import artifact
from jpq_jax.artifact import coder, record
from jpq_jax.artifact import tree as tree_module
from jpq_jax.vocabulary import LEVELS, Codes, dequantize, is_codes, leaves_with_paths

GOLDEN = Path(__file__).parent / "golden" / "v1.jpq"


def make_codes(code: Any, values: Any = (-0.5, 0.25, 1.5), bits: int = 2, dtype: str = "float32"):
    codebook = np.zeros(LEVELS, np.float32)
    codebook[1 : 1 + len(values)] = values
    return Codes(
        code=jnp.asarray(np.asarray(code, np.int16)),
        codebook=jnp.asarray(codebook),
        bits=jnp.asarray(bits, jnp.int32),
        dtype=dtype,
    )


def random_codes(shape: tuple[int, ...], bits: int = 2, density: float = 0.3, seed: int = 0):
    rng = np.random.default_rng(seed)
    code = np.where(rng.random(shape) < density, rng.integers(1, 2**bits, shape, endpoint=True), 0)
    return make_codes(code, np.linspace(-1, 1.1, 2**bits), bits)


def compress(tree: Any) -> Any:
    """Codes for every leaf of two or more dims, the others left alone."""
    return jax.tree.map(lambda x: random_codes(x.shape) if x.ndim >= 2 else x, tree)


def bits_of(leaf: Any) -> Any:
    """All there is to a leaf, for comparisons to the bit."""
    if is_codes(leaf):
        return "codes", leaf.dtype, [bits_of(x) for x in (leaf.code, leaf.codebook, leaf.bits)]
    array = np.asarray(leaf)
    return array.dtype.name, array.shape, array.tobytes()


def assert_same(got: Any, expected: Any) -> None:
    """The same structure, and leaves the same to the bit."""
    assert jax.tree.structure(got, is_leaf=is_codes) == jax.tree.structure(
        expected, is_leaf=is_codes
    )
    for (path, a), (_, b) in zip(leaves_with_paths(got), leaves_with_paths(expected), strict=True):
        assert bits_of(a) == bits_of(b), path


def forge(header: Any, payload: bytes = b"", name: str = "data", key: str = "jpq") -> bytes:
    """A file with any header and a right checksum, made without the code under test."""
    text = header if isinstance(header, str) else json.dumps(header)
    body = np.frombuffer(payload + bytes(4), np.uint8)
    return with_checksum(safetensors.numpy.save({name: body}, {key: text}))


def with_checksum(data: bytes) -> bytes:
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def header_of(*leaves: Any, version: Any = 1, extras: Any = None) -> dict[str, Any]:
    return {"version": version, "leaves": list(leaves), "extras": extras or {}}


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
    return {"b": {"kernel": random_codes((5, 5, 1, 4)), "bias": jnp.arange(4.0)}, "a": jnp.ones(3)}


TREES = {
    "dict": dict_tree,
    "ordered": lambda: OrderedDict(z=random_codes((3,)), a=jnp.ones(2)),
    "linen": lambda: FrozenDict({"params": dict_tree()}),
    "list": lambda: [random_codes((3, 2)), (jnp.ones(2), None, {"x": jnp.zeros(())})],
    "twelve": lambda: [jnp.full(1, i) for i in range(12)],
    "integer keys": lambda: {10: jnp.ones(1), 9: {-1: random_codes((2,))}},
    "odd keys": lambda: {"a/b": jnp.ones(1), "a": {"b": jnp.zeros(1)}, "é\ud800\n\"'": jnp.ones(2)},
    "namedtuple": lambda: Pair(random_codes((2, 2)), [jnp.ones(2)]),
    "root": lambda: random_codes((4, 4)),
    "root array": lambda: jnp.ones(3),
    "empty": dict,
    "nnx": nnx_tree,
    "equinox": equinox_tree,
    "attribute value": lambda: {
        "a": Attention(random_codes((2, 3)), jnp.ones(2)),
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
    assert_same(loaded.codes, tree)
    assert loaded.extras == {"config": "lenet5"}
    assert loaded.nbytes == nbytes == path.stat().st_size


def test_like_may_be_shapes_or_codes(tree: Any):
    data = artifact.encode(tree)
    shapes = jax.eval_shape(lambda: dequantize(tree))
    assert_same(artifact.decode(data, like=shapes).codes, tree)
    assert_same(artifact.decode(data, like=tree).codes, tree)


def test_bytes_are_the_same_after_a_round_trip_without_like(tree: Any):
    data = artifact.encode(tree, {"b": 1, "a": [0.1, None, {"é": True}]})
    codes, extras, _ = artifact.decode(data)
    assert artifact.encode(codes, extras) == data


def test_tree_is_rebuilt_from_its_paths():
    w, x = jnp.ones(1), jnp.zeros(2)
    tree = {"pair": Pair(w, (None, x)), "layers": {0: w, 1: {"0": x}}}
    expected = {"pair": {"first": w, "second": [None, x]}, "layers": {0: w, 1: {"0": x}}}
    assert_same(artifact.decode(artifact.encode(tree)).codes, expected)


def test_nnx_states_and_their_dicts_have_the_same_file():
    state = nnx.state(Net(nnx.Rngs(0)))
    data = artifact.encode(compress(state))
    plain = nnx.to_pure_dict(state)
    assert artifact.encode(compress(plain)) == data
    assert_same(artifact.decode(data).codes, compress(plain))


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


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 1, 2, 1, 2)])
@pytest.mark.parametrize("dtype", sorted(record.DTYPES))
def test_stored_arrays_keep_their_bits(dtype: str, shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 2 if dtype == "bool" else 256, (*shape, np.dtype(dtype).itemsize))
    array = np.frombuffer(raw.astype(np.uint8).tobytes(), np.dtype(dtype)).reshape(shape)
    if dtype.endswith("int4"):
        array = array.astype(np.int8).astype(np.dtype(dtype))  # its high bits mean nothing
    got = artifact.decode(artifact.encode({"x": array})).codes["x"]
    assert bits_of(got) == bits_of(array)
    held = jax.dtypes.canonicalize_dtype(np.dtype(dtype)) == np.dtype(dtype)
    assert isinstance(got, jax.Array if held else np.ndarray)


def test_nan_payloads_negative_zeros_and_subnormals_are_kept():
    words = np.array([0x7FC00001, 0xFFC0BEEF, 0x7F800001, 0x80000000, 1, 0xFF800000], np.uint32)
    array = words.view(np.float32)
    for leaf in (array, jnp.asarray(array)):
        assert bits_of(artifact.decode(artifact.encode([leaf])).codes[0]) == bits_of(array)


def test_views_and_foreign_byte_orders_are_stored_by_value():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (array.T, array[::2, ::-1], array.astype(">f4"), array[0, 0]):
        [got] = artifact.decode(artifact.encode([view])).codes
        np.testing.assert_array_equal(got, view)


CODES = {
    "empty": make_codes(np.zeros((0, 3))),
    "no dims": make_codes(2),
    "five dims": random_codes((2, 3, 1, 4, 5)),
    "all zeros": make_codes(np.zeros((300, 1000)), ()),
    "one symbol": make_codes(np.full((50, 4), 3)),
    "all levels": make_codes(np.arange(LEVELS), np.arange(1, LEVELS), bits=8),
    "rare levels": make_codes(np.r_[np.zeros(100_000), 7, 200], np.arange(1, LEVELS), bits=8),
    "values that no weight has": make_codes([0, 2, 0], [-1.0, 2.0, 3.0]),
    "a zero among the values": make_codes([0, 1, 2, 3], [1.0, 0.0, 3.0]),
    "-0.0 last": make_codes([0, 1, 2], [1.0, -0.0]),
    "bfloat16": make_codes([[0, 1], [3, 2]], dtype="bfloat16"),
}


@pytest.mark.parametrize("codes", CODES.values(), ids=CODES)
def test_codes_come_back_to_the_bit(codes: Codes):
    data = artifact.encode({"w": codes})
    got = artifact.decode(data).codes["w"]
    assert_same(got, codes)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(got))
    assert bits_of(dequantize(got)) == bits_of(dequantize(codes))
    assert artifact.encode({"w": got}) == data


def test_leaf_bytes_add_up_to_the_file(tree: Any, tmp_path: Path):
    sizes = artifact.leaf_bytes(tree, {"epoch": 3})
    assert sum(n for _, n in sizes.leaves) + sizes.container == sizes.nbytes
    assert sizes.nbytes == artifact.save(tmp_path / "net.jpq", tree, {"epoch": 3})
    assert len(sizes.leaves) == len(leaves_with_paths(tree))


def test_leaf_bytes_are_those_of_the_leaves():
    sizes = artifact.leaf_bytes({"b": jnp.ones(5), "w": CODES["all zeros"]})
    assert sizes.leaves == [("b", 20), ("w", 4)]


# The coder


@st.composite
def symbol_arrays(draw: st.DrawFn) -> np.ndarray:
    alphabet = draw(st.lists(st.integers(0, LEVELS - 1), min_size=1, max_size=8, unique=True))
    picks = draw(hnp.arrays(np.int16, st.integers(0, 300), elements=st.sampled_from(alphabet)))
    return np.concatenate([picks, np.full(draw(st.integers(0, 2000)), alphabet[0], np.int16)])


@settings(deadline=None, max_examples=150)
@given(symbol_arrays())
def test_coder_gives_symbols_back(symbols: np.ndarray):
    table = coder.frequency_table(symbols)
    words = coder.encode(symbols, table)
    np.testing.assert_array_equal(coder.decode(words, table, symbols.size), symbols)


@settings(deadline=None, max_examples=150)
@given(symbol_arrays())
def test_frequencies_are_whole_and_exact(symbols: np.ndarray):
    table = coder.frequency_table(symbols)
    assert table.sum() == (coder.TOTAL if symbols.size else 0)
    assert table.size == (symbols.max() + 1 if symbols.size else 0)
    np.testing.assert_array_equal(np.flatnonzero(table), np.unique(symbols))


def reference_words(symbols: np.ndarray, table: np.ndarray) -> list[int]:
    """The coder as docs/format.md describes it, in Python's integers: nothing can be rounded."""
    frequency, below = table.tolist(), [0, *np.cumsum(table).tolist()]
    state, words = 0, []
    for symbol in reversed(symbols.tolist()):
        if state >> 40 >= frequency[symbol]:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        turns, rest = divmod(state, frequency[symbol])
        state = (turns << 24) + below[symbol] + rest
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return words


@pytest.mark.parametrize("seed", range(20))
def test_coder_uses_exactly_the_integer_frequencies(seed: int):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, LEVELS + 1))
    weights = rng.random(size) ** rng.integers(1, 30)
    symbols = rng.choice(size, 3000, p=weights / weights.sum()).astype(np.int16)
    table = coder.frequency_table(symbols)
    assert coder.encode(symbols, table).tolist() == reference_words(symbols, table)


def test_decoder_works_in_chunks(monkeypatch: pytest.MonkeyPatch):
    symbols = np.asarray(random_codes((1000,)).code)
    table = coder.frequency_table(symbols)
    words = coder.encode(symbols, table)
    monkeypatch.setattr(coder, "_CHUNK", 7)
    np.testing.assert_array_equal(coder.decode(words, table, symbols.size), symbols)


@pytest.mark.parametrize("density", [1e-5, 1e-3, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_payload_takes_the_entropy(density: float, bits: int):
    code = np.asarray(random_codes((400, 1000), bits, density, seed=bits).code)
    table, counts = coder.frequency_table(code), np.bincount(code.ravel())
    used = counts > 0
    entropy = -(counts[used] * np.log2(counts[used] / code.size)).sum() / 8
    ideal = -(counts[used] * np.log2(table[: counts.size][used] / coder.TOTAL)).sum() / 8
    assert coder.encode(code, table).nbytes <= min(1.0001 * ideal + 8, 1.001 * entropy + 8)


def test_a_leaf_of_zeros_costs_almost_nothing():
    one, many = (artifact.encode([make_codes(np.zeros(n), ())]) for n in (1, 2**22))
    assert len(many) - len(one) <= 8


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
    assert_same(artifact.load(str(path)).codes, [jnp.zeros(3)])
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
    good = make_codes([0, 1])
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


def test_what_could_not_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(record, "FREE_ELEMENTS", 10**6)
    monkeypatch.setattr(tree_module, "_MAX_ABSENT", 10)
    with pytest.raises(ValueError, match="2000000 elements in a file of"):
        artifact.encode({"a": make_codes(np.zeros((2, 10**6)), ())})
    with pytest.raises(ValueError, match="11 positions of lists are empty"):
        artifact.encode([None] * 11 + [jnp.ones(1)])


def nested_list(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


BAD_EXTRAS = [
    ([1], TypeError, "extras: got list"),
    ({"x": jnp.ones(1)}, ValueError, "not JSON serializable"),
    ({"x": math.nan}, ValueError, "not JSON compliant"),
    ({"x": {1: 2}}, ValueError, "extras change when written as JSON"),
    ({"x": (1, 2)}, ValueError, "extras change when written as JSON"),
    ({"x": nested_list(5000)}, ValueError, "cannot be written as JSON"),
    ({"x": 1, 2: 3}, ValueError, "extras"),
]


@pytest.mark.parametrize(("extras", "kind", "message"), BAD_EXTRAS, ids=range(len(BAD_EXTRAS)))
def test_bad_extras(extras: Any, kind: type, message: str):
    with pytest.raises(kind, match=message):
        artifact.encode([], extras)


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
    data = artifact.encode({"w": make_codes([1, 0], dtype="bfloat16")})
    with pytest.raises(ValueError, match="leaf 'w': got dtype bfloat16, expected float32"):
        artifact.decode(data, like={"w": jnp.ones(2)})


def test_strings_and_integers_are_different_keys():
    with pytest.raises(ValueError, match="not in the file"):
        artifact.decode(artifact.encode({"0": jnp.ones(1)}), like={0: jnp.ones(1)})


# Files that nobody vouches for


def small_file() -> bytes:
    tree = {"w": random_codes((6, 5)), "b": jnp.ones(2), "on": np.array([True, False])}
    return artifact.encode(tree, {"config": "x"})


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        artifact.load(tmp_path / "none.jpq")


def test_errors_name_the_file(tmp_path: Path):
    path = tmp_path / "net.jpq"
    path.write_bytes(small_file()[:-1])
    with pytest.raises(ValueError, match=r"net\.jpq: the checksum does not match"):
        artifact.load(path)


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_altered_byte_is_noticed(mask: int):
    data = small_file()
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= mask
        with pytest.raises(ValueError, match=r"^<bytes>: "):
            artifact.decode(bytes(bad))


def test_every_truncation_and_anything_appended_is_noticed():
    data = small_file()
    for bad in (*(data[:length] for length in range(len(data))), data + b"\0", data + data):
        with pytest.raises(ValueError, match=r"^<bytes>: "):
            artifact.decode(bad)


def decode_or_refuse(data: bytes) -> bool:
    """Whether a file is taken. Anything but a ValueError that names it fails the test."""
    try:
        artifact.decode(data)
    except ValueError as error:
        if not str(error).startswith("<bytes>: "):
            raise
        return False
    return True


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_forged_bytes_under_a_right_checksum_do_no_harm(data: st.DataObject):
    bad = bytearray(small_file())
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 5))] = data.draw(st.integers(0, 255))
    decode_or_refuse(with_checksum(bytes(bad)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(st.lists(json_values, min_size=3, max_size=6), st.binary(max_size=40), json_values)
def test_forged_records_do_no_harm(fields: list[Any], payload: bytes, extras: Any):
    decode_or_refuse(forge({"version": 1, "leaves": [fields], "extras": extras}, payload))
    for place, field in enumerate(fields[:5]):
        forged: list[Any] = [["w"], [2], "float32", len(payload), 2]
        forged[place] = field
        decode_or_refuse(forge(header_of(forged), payload))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.sampled_from(["a", "b", 0, 1, [0], [1]]), max_size=3), max_size=5))
def test_forged_paths_do_no_harm(paths: list[Any]):
    data = forge(header_of(*([path, [0], "float32", 0] for path in paths)))
    if decode_or_refuse(data):
        codes = artifact.decode(data).codes
        assert len(jax.tree.leaves(codes)) == len(paths)
        assert_same(artifact.decode(artifact.encode(codes)).codes, codes)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 50))
def test_forged_codes_do_no_harm(payload: bytes, count: int):
    decode_or_refuse(forge(header_of([["w"], [count], "float32", len(payload), 2]), payload))


ZEROS = bytes([0, 0, 1, 0])  # no values, one symbol, all of the frequency: a leaf of zeros


def zeros_record(*shape: int) -> list[Any]:
    return [["w"], list(shape), "float32", len(ZEROS), 1]


def test_forge_makes_files_that_load():
    data = forge(header_of(zeros_record(3, 4)), ZEROS)
    assert_same(artifact.decode(data).codes, {"w": make_codes(np.zeros((3, 4)), (), bits=1)})


CLAIMS = [
    [zeros_record(2**28)],
    [zeros_record(2**62, 2**62, 2**62)],
    [zeros_record(0, 2**40)],
    [zeros_record(0, 10**400)],
    [[[str(i)], [2**26], "float32", len(ZEROS), 1] for i in range(3)],
    [[["w"], [0, 2**40], "float32", 0]],
]


@pytest.mark.parametrize("leaves", CLAIMS, ids=range(len(CLAIMS)))
def test_enormous_claims_are_refused(leaves: list[Any]):
    compressed = sum(len(leaf) == 5 for leaf in leaves)
    with pytest.raises(ValueError, match=r"<bytes>: \d+ elements in a file of \d+ bytes"):
        artifact.decode(forge(header_of(*leaves), ZEROS * compressed))


def record_like(**changes: Any) -> list[Any]:
    fields = {"path": ["w"], "shape": [2], "dtype": "float32", "nbytes": 8} | changes
    return list(fields.values())


BAD_FILES = {
    "no bytes": (b"", "not a jpq artifact"),
    "not safetensors": (b"PK\3\4" * 20, "not a jpq artifact"),
    "not JSON": ((4).to_bytes(8, "little") + b"{]  ", "not JSON"),
    "not UTF-8": ((4).to_bytes(8, "little") + b'{"\xff"', "utf-8"),
    "not an object": ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
    "deep JSON": (forge("[" * 10**5), "not JSON"),
    "other safetensors": (safetensors.numpy.save({"w": np.ones(2)}), "not a jpq artifact"),
    "other metadata": (forge("{}", key="pt"), "without 'jpq' metadata"),
    "NaN": (forge('{"version":NaN}'), "NaN is not JSON"),
    "no version": (forge({}), "version None"),
    "text version": (forge(header_of(version="1")), "version '1'"),
    "version 0": (forge(header_of(version=0)), "version 0"),
    "true version": (forge(header_of(version=True)), "version True"),
    "newer": (forge(header_of(version=2)), "newer version of jpq_jax: got format version 2"),
    "no leaves": (forge({"version": 1, "extras": {}}), "lacks"),
    "no extras": (forge({"version": 1, "leaves": []}), "lacks"),
    "extras of a list": (forge({"version": 1, "leaves": [], "extras": []}), "lacks"),
    "other tensor": (forge(header_of(), name="weights"), "got tensors"),
    "record of text": (forge(header_of("w")), "4 to 6 fields"),
    "short record": (forge(header_of([["w"], [2], "float32"])), "4 to 6 fields"),
    "path of text": (forge(header_of(record_like(path="w"))), "steps"),
    "long path": (forge(header_of(record_like(path=["a"] * 101))), "up to 100 steps"),
    "float key": (forge(header_of(record_like(path=[0.5]))), "a key or a position"),
    "true key": (forge(header_of(record_like(path=[True]))), "a key or a position"),
    "negative position": (forge(header_of(record_like(path=[-1]))), "a key or a position"),
    "list key": (forge(header_of(record_like(path=[["a"]]))), "an integer key"),
    "distant position": (forge(header_of(record_like(path=[10**9])), bytes(8)), "are empty"),
    "negative dim": (forge(header_of(record_like(shape=[-2])), bytes(8)), "dims >= 0"),
    "float dim": (forge(header_of(record_like(shape=[2.0])), bytes(8)), "dims >= 0"),
    "many dims": (forge(header_of(record_like(shape=[1] * 65))), "up to 64 dims"),
    "dtype": (forge(header_of(record_like(dtype="object")), bytes(8)), "a known dtype"),
    "dtype of a struct": (forge(header_of(record_like(dtype="i4,f4")), bytes(8)), "known dtype"),
    "dtype of a list": (forge(header_of(record_like(dtype=["f4"]))), "a known dtype"),
    "negative size": (forge(header_of(record_like(nbytes=-8))), "a number of bytes"),
    "bits": (forge(header_of([*record_like(), 9]), bytes(8)), "1 to 8 bits"),
    "null bits": (forge(header_of([*record_like(), None]), bytes(8)), "1 to 8 bits"),
    "too few bytes": (forge(header_of(record_like()), bytes(7)), "7 bytes of leaves, expected 8"),
    "too many bytes": (forge(header_of(record_like()), bytes(9)), "9 bytes of leaves, expected 8"),
    "array too short": (forge(header_of(record_like(nbytes=4)), bytes(4)), "leaf 'w': got 4"),
    "bool of 2": (forge(header_of(record_like(dtype="bool", nbytes=2)), b"\1\2"), "neither 0"),
    "path twice": (forge(header_of(record_like(), record_like()), bytes(16)), "two leaves have"),
    "leaf on a leaf": (
        forge(header_of(record_like(), record_like(path=["w", "x"])), bytes(16)),
        "leaf 'w/x': another leaf",
    ),
    "leaf under a leaf": (
        forge(header_of(record_like(path=["w", "x"]), record_like()), bytes(16)),
        "leaf 'w': another leaf",
    ),
    "leaf over the root": (
        forge(header_of(record_like(path=[]), record_like()), bytes(16)),
        r"leaf '\(root\)': another leaf",
    ),
    "mixed keys": (
        forge(header_of(record_like(), record_like(path=[0])), bytes(16)),
        "keys of different kinds",
    ),
}


@pytest.mark.parametrize(("data", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_says_what_is_wrong(data: bytes, message: str):
    with pytest.raises(ValueError, match="^<bytes>: .*" + message):
        artifact.decode(data)


def u16(*numbers: int) -> bytes:
    return np.array(numbers, "<u2").tobytes()


BAD_CODES = {
    "nothing": (b"", "0 bytes left"),
    "too many values": (u16(257, 1), "257 values"),
    "too many symbols": (u16(0, 258), "258 codes"),
    "values missing": (u16(2, 1) + bytes(4), "4 bytes left, expected at least 8"),
    "frequencies missing": (u16(0, 3) + bytes(5), "5 bytes left, expected at least 6"),
    "no symbols": (u16(0, 0), "frequency table of 0 entries for 3 symbols"),
    "frequencies over the total": (u16(0, 3) + b"\xff" * 6, "frequencies are not"),
    "words for one symbol": (u16(0, 1) + bytes([1, 0, 0, 0]), "less than two distinct"),
    "a zero word": (u16(0, 2) + b"\0\0\1" + bytes(4), "zero word"),
    "too many words": (u16(0, 2) + b"\0\0\1" + b"\1" * 40, "more than 3 symbols"),
    "part of a word": (u16(0, 2) + b"\0\0\1" + b"\1" * 3, "3 bytes after the last"),
    "NaN in the codebook": (u16(1, 1) + b"\0\0\xc0\x7f", "not finite"),
    "code without bits": (u16(0, 4) + bytes(9), "codes 3 to 3"),
}


@pytest.mark.parametrize(("payload", "message"), BAD_CODES.values(), ids=BAD_CODES)
def test_bad_codes_name_the_leaf(payload: bytes, message: str):
    data = forge(header_of([["w"], [3], "float32", len(payload), 1]), payload)
    with pytest.raises(ValueError, match=r"^<bytes>: .*leaf 'w': .*" + message):
        artifact.decode(data)


# The format


def golden_tree() -> Any:
    nan = np.array([0x7FC00001, 0x3F800000], np.uint32).view(np.float32)
    return {
        "conv": {
            "kernel": make_codes([[[0, 1], [3, 0]], [[0, 0], [2, 3]]]),
            "bias": jnp.asarray(nan),
        },
        "layers": [
            {"scale": jnp.asarray([1.5, -2.0], jnp.bfloat16)},
            None,
            {"steps": np.array([2**53 + 1], np.int64), "on": jnp.asarray(True)},
        ],
        "blocks": {
            7: make_codes(np.zeros((40, 50)), [0.125], bits=1, dtype="bfloat16"),
            12: make_codes(np.full((2, 0, 3), 0)),
        },
        "dense": make_codes(
            np.where(np.arange(300) % 37 == 5, 30, np.arange(300) % 2), np.arange(1, 31) / 8, 5
        ),
    }


GOLDEN_EXTRAS = {
    "config": "lenet5_mnist",
    "baseline_accuracy": 0.9919,
    "note": "é",
    "list": [1, None],
}


def test_version_1_is_read_for_ever():
    codes, extras, nbytes = artifact.load(GOLDEN)
    assert_same(codes, golden_tree())
    assert extras == GOLDEN_EXTRAS
    assert nbytes == GOLDEN.stat().st_size < 2048


def test_version_1_is_written_as_it_was():
    assert artifact.encode(golden_tree(), GOLDEN_EXTRAS) == GOLDEN.read_bytes()
