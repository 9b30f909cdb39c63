"""One leaf and its bytes: arrays and codes to the bit."""

from __future__ import annotations

import files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpq_jax import artifact
from jpq_jax.artifact import record
from jpq_jax.vocabulary import LEVELS, Codes, dequantize

PATTERNS = {
    "bool": 2,
    "int1": 2,
    "uint1": 2,
    "int2": 4,
    "uint2": 4,
    "int4": 16,
    "uint4": 16,
    "float4_e2m1fn": 16,
    "float6_e2m3fn": 64,
    "float6_e3m2fn": 64,
}
NOT_IN_JAX = (
    *("float6_e2m3fn", "float6_e3m2fn", "float8_e5m3fnu", "int1", "uint1"),
    *("complex32", "bcomplex32"),
)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 1, 2, 1, 2)])
@pytest.mark.parametrize("dtype", sorted(record.DTYPES))
def test_stored_arrays_keep_their_bits(dtype: str, shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, PATTERNS.get(dtype, 256), (*shape, np.dtype(dtype).itemsize))
    array = np.frombuffer(raw.astype(np.uint8).tobytes(), np.dtype(dtype)).reshape(shape)
    if dtype in ("int4", "int2", "int1"):
        array = array.astype(np.int8).astype(np.dtype(dtype))  # its high bits are its sign
    got = artifact.decode(artifact.encode({"x": array})).codes["x"]
    assert files.bits_of(got) == files.bits_of(array)
    held = dtype not in NOT_IN_JAX
    held = held and jax.dtypes.canonicalize_dtype(np.dtype(dtype)) == np.dtype(dtype)
    assert isinstance(got, jax.Array if held else np.ndarray)


def test_jax_takes_the_dtypes_that_are_given_to_it():
    for dtype in set(record.DTYPES) - set(NOT_IN_JAX):  # of which newer releases take some
        array = np.zeros(2, np.dtype(dtype))
        if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype:
            assert jnp.asarray(array).dtype == array.dtype


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
    sizes = artifact.leaf_bytes({"b": jnp.sqrt(jnp.arange(2.0, 7.0)), "w": CODES["all zeros"]})
    assert sizes.leaves == [("b", 20), ("w", 2)]


def test_a_leaf_of_zeros_costs_almost_nothing():
    one, many = (artifact.encode([files.make_codes(np.zeros(n), ())]) for n in (1, 2**22))
    assert len(many) - len(one) <= 8
