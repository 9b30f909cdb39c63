"""One leaf and its bytes: arrays and codes to the bit, the entropy coder against Python's integers."""

from __future__ import annotations

import files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jpq_jax import artifact
from jpq_jax.artifact import coder, record
from jpq_jax.vocabulary import LEVELS, Codes, dequantize

# Leaves


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 1, 2, 1, 2)])
@pytest.mark.parametrize("dtype", sorted(record.DTYPES))
def test_stored_arrays_keep_their_bits(dtype: str, shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 2 if dtype == "bool" else 256, (*shape, np.dtype(dtype).itemsize))
    array = np.frombuffer(raw.astype(np.uint8).tobytes(), np.dtype(dtype)).reshape(shape)
    if dtype.endswith("int4"):
        array = array.astype(np.int8).astype(np.dtype(dtype))  # its high bits mean nothing
    got = artifact.decode(artifact.encode({"x": array})).codes["x"]
    assert files.bits_of(got) == files.bits_of(array)
    held = jax.dtypes.canonicalize_dtype(np.dtype(dtype)) == np.dtype(dtype)
    assert isinstance(got, jax.Array if held else np.ndarray)


def test_nan_payloads_negative_zeros_and_subnormals_are_kept():
    words = np.array([0x7FC00001, 0xFFC0BEEF, 0x7F800001, 0x80000000, 1, 0xFF800000], np.uint32)
    array = words.view(np.float32)
    for leaf in (array, jnp.asarray(array)):
        assert files.bits_of(artifact.decode(artifact.encode([leaf])).codes[0]) == files.bits_of(
            array
        )


def test_views_and_foreign_byte_orders_are_stored_by_value():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (array.T, array[::2, ::-1], array.astype(">f4"), array[0, 0]):
        [got] = artifact.decode(artifact.encode([view])).codes
        np.testing.assert_array_equal(got, view)


CODES = {
    "empty": files.make_codes(np.zeros((0, 3))),
    "no dims": files.make_codes(2),
    "five dims": files.random_codes((2, 3, 1, 4, 5)),
    "all zeros": files.make_codes(np.zeros((300, 1000)), ()),
    "one symbol": files.make_codes(np.full((50, 4), 3)),
    "all levels": files.make_codes(np.arange(LEVELS), np.arange(1, LEVELS), bits=8),
    "rare levels": files.make_codes(np.r_[np.zeros(100_000), 7, 200], np.arange(1, LEVELS), bits=8),
    "values that no weight has": files.make_codes([0, 2, 0], [-1.0, 2.0, 3.0]),
    "a zero among the values": files.make_codes([0, 1, 2, 3], [1.0, 0.0, 3.0]),
    "-0.0 last": files.make_codes([0, 1, 2], [1.0, -0.0]),
    "bfloat16": files.make_codes([[0, 1], [3, 2]], dtype="bfloat16"),
}


@pytest.mark.parametrize("codes", CODES.values(), ids=CODES)
def test_codes_come_back_to_the_bit(codes: Codes):
    data = artifact.encode({"w": codes})
    got = artifact.decode(data).codes["w"]
    files.assert_same(got, codes)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(got))
    assert files.bits_of(dequantize(got)) == files.bits_of(dequantize(codes))
    assert artifact.encode({"w": got}) == data


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
    symbols = np.asarray(files.random_codes((1000,)).code)
    table = coder.frequency_table(symbols)
    words = coder.encode(symbols, table)
    monkeypatch.setattr(coder, "_CHUNK", 7)
    np.testing.assert_array_equal(coder.decode(words, table, symbols.size), symbols)


@pytest.mark.parametrize("density", [1e-5, 1e-3, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_payload_takes_the_entropy(density: float, bits: int):
    code = np.asarray(files.random_codes((400, 1000), bits, density, seed=bits).code)
    table, counts = coder.frequency_table(code), np.bincount(code.ravel())
    used = counts > 0
    entropy = -(counts[used] * np.log2(counts[used] / code.size)).sum() / 8
    ideal = -(counts[used] * np.log2(table[: counts.size][used] / coder.TOTAL)).sum() / 8
    assert coder.encode(code, table).nbytes <= min(1.0001 * ideal + 8, 1.001 * entropy + 8)


def test_a_leaf_of_zeros_costs_almost_nothing():
    one, many = (artifact.encode([files.make_codes(np.zeros(n), ())]) for n in (1, 2**22))
    assert len(many) - len(one) <= 8
