"""Lossless coding: every array comes back to the bit, in about what its exponents' entropy allows."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compiled import THOROUGH
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jpq_jax.artifact import lossless
from jpq_jax.artifact.lossless import dictionary, floats, integers
from jpq_jax.artifact.lossless.fields import LAYOUTS, fields_of, words_of
from jpq_jax.artifact.record import DTYPES
from jpq_jax.artifact.stream import Reader, Writer

shapes = hnp.array_shapes(min_dims=0, max_dims=5, min_side=1, max_side=6)
NARROW = {"bool": 1, "int1": 1, "uint1": 1, "int2": 2, "uint2": 2, "int4": 4, "uint4": 4}


def round_trip(array: np.ndarray) -> int:
    """The bytes that it takes."""
    writer = Writer()
    lossless.write_array(writer, array)
    data = writer.finish()
    reader = Reader(data)
    again = lossless.read_array(reader, array.shape, array.dtype)
    reader.finish()
    assert (again.shape, again.dtype) == (array.shape, array.dtype)
    assert again.tobytes() == array.tobytes()
    return len(data)


@st.composite
def arrays(draw: Any) -> np.ndarray:
    """Of any dtype: any bits, normal weights of any scale, few distinct ones, or many zeros."""
    dtype, shape = np.dtype(draw(st.sampled_from(DTYPES))), draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["bits", "normal", "few", "sparse"]))
    raw = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    if dtype.name in NARROW:
        raw = raw & (2 ** NARROW[dtype.name] - 1)
        array = raw.astype(np.int8).view(dtype) if dtype.name.startswith("u") else raw.view(dtype)
        if dtype.name.startswith("int"):
            array = raw.view(np.int8).astype(dtype)
        return array.reshape(shape)
    array = raw.view(dtype).reshape(shape)
    is_float = dtype.name.startswith(("float", "bfloat")) and dtype.name in LAYOUTS
    if kind == "normal" and is_float:
        scale = 2.0 ** draw(st.integers(-130, 100))
        with np.errstate(over="ignore"):
            array = (rng.standard_normal(shape) * scale).astype(dtype)
    if kind == "few":
        flat = array.reshape(-1)
        array = flat[rng.integers(0, min(flat.size, 3), flat.size)].reshape(shape)
    if kind == "sparse":
        array = np.where(rng.random(shape) < 0.8, np.zeros(shape, dtype), array)
    return array


@settings(deadline=None, max_examples=2000 if THOROUGH else 250)
@given(arrays())
def test_any_array_comes_back_to_the_bit(array: np.ndarray):
    round_trip(array)


@pytest.mark.parametrize("dtype", LAYOUTS)
def test_fields_are_those_of_every_kind_of_float(dtype: str):
    layout = LAYOUTS[dtype]
    rng = np.random.default_rng(0)
    words = rng.integers(1, 2**layout.sign, 4000, dtype=np.uint64)
    words[:1000] &= np.uint64(2**layout.digits - 1)  # subnormals
    words = np.append(words[words != 0], np.uint64(1))
    fields = fields_of(words, layout)
    np.testing.assert_array_equal(words_of(fields, layout), words)
    values = words.astype(layout.word).view(np.dtype(dtype))
    finite = np.isfinite(values)
    bias = layout.exponents // 2 - 1
    mantissa = 1 + fields.mantissas.astype(np.float64) / 2**layout.digits
    with np.errstate(over="ignore", under="ignore"):
        expected = np.ldexp(mantissa, fields.exponents - bias)
    np.testing.assert_array_equal(values[finite].astype(np.float64), expected[finite])


def exponent_entropy(array: np.ndarray) -> float:
    """Bytes with exponents by their own frequencies, and signs and mantissas as they are."""
    layout = LAYOUTS[array.dtype.name]
    words = array.view(layout.word).astype(np.int64).ravel()
    exponents = (words & (2**layout.sign - 1)) >> layout.digits
    counts = np.unique(exponents, return_counts=True)[1]
    bits = counts @ np.log2(array.size / counts) + (1 + layout.digits) * array.size
    return float(bits) / 8


@pytest.mark.parametrize("shape", [(400, 300), (3, 3, 64, 32), (60_000,)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_weights_take_their_exponents_entropy(dtype: str, shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    array = (rng.standard_t(5, shape) / 20).astype(np.dtype(dtype))
    assert round_trip(array) <= 1.01 * exponent_entropy(array)


def test_lines_of_different_scales_take_less():
    rng = np.random.default_rng(0)
    rows, columns = np.exp2(6 * rng.random((400, 1))), np.exp2(6 * rng.random(300))
    array = (rows * columns * rng.standard_normal((400, 300))).astype(ml_dtypes.bfloat16)
    assert round_trip(array) <= 0.92 * exponent_entropy(array)


@pytest.mark.parametrize(
    ("array", "most"),
    [
        (np.zeros((100, 100), np.float32), 16),
        (np.full((100, 100), -np.inf, np.float32), 16),
        (np.triu(np.full((256, 256), np.finfo(np.float32).min, np.float32), 1), 900),
        (np.triu(np.full((256, 256), -np.inf, np.float32), 1), 900),
        (np.tri(256, dtype=bool), 900),
        (np.arange(512, dtype=np.int64)[None], 32),
        (np.arange(512, dtype=np.int32)[None].repeat(4, 0), 96),
        (np.arange(10**9, 10**9 + 512, dtype=np.int64), 32),
        (np.arange(512, dtype=np.uint64) + np.uint64(2**64 - 600), 32),
        (np.arange(0, 51200, 100, dtype=np.int32), 64),
    ],
    ids=lambda x: "" if isinstance(x, int) else f"{x.dtype.name}{x.shape}",
)
def test_buffers_of_models_take_next_to_nothing(array: np.ndarray, most: int):
    assert round_trip(array) <= most


def test_a_pruned_kernel_with_negative_zeros():
    rng = np.random.default_rng(0)
    weights, mask = rng.standard_normal((300, 200)).astype(np.float32), rng.random((300, 200)) < 0.1
    array = weights * mask.astype(np.float32)
    assert np.signbit(array[array == 0]).any()
    assert round_trip(array) <= 6_000 * 4 * 0.86 + 60_000 * (0.47 + 1) / 8


def test_floats_that_were_bfloat16_take_what_bfloat16_does():
    narrow = np.random.default_rng(0).standard_normal((300, 200)).astype(ml_dtypes.bfloat16)
    assert round_trip(narrow.astype(np.float32)) <= 1.001 * round_trip(narrow)


def test_finer_grids_take_more_and_parts_of_a_grid_take_their_part():
    weights = np.random.default_rng(0).standard_normal((300, 200))
    coarse, fine = ((np.rint(weights * n) / n).astype(np.float32) for n in (2**8, 2**9))
    mixed = np.concatenate([fine[:150], coarse[150:]])
    sizes = [round_trip(array) for array in (coarse, mixed, fine)]
    assert sizes[2] - sizes[0] == pytest.approx(weights.size / 8, rel=0.01)
    assert sizes[1] == pytest.approx((sizes[0] + sizes[2]) / 2, rel=0.002)


@settings(deadline=None, max_examples=100)
@given(hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(-(2**63), 2**63 - 1)))
def test_integers_of_every_size(array: np.ndarray):
    writer = Writer()
    integers.write_integers(writer, array)
    np.testing.assert_array_equal(
        integers.read_integers(Reader(writer.finish()), array.shape), array
    )


def test_large_arrays_are_tried_by_their_beginning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lossless.choice, "_TRIAL", 1000)
    monkeypatch.setattr(lossless.choice, "_BEGINNING", 500)
    rng = np.random.default_rng(0)
    for array in (rng.standard_normal((70, 30)).astype(np.float32), rng.integers(0, 99, (70, 30))):
        round_trip(array)
        assert lossless.estimated_bytes(array) == pytest.approx(round_trip(array), rel=0.1)


def test_slabs_come_back(monkeypatch: pytest.MonkeyPatch):
    array = np.random.default_rng(0).standard_normal((90, 40)).astype(np.float16)
    array[7] = array[:, 3] = 0
    whole = round_trip(array)
    for module in (floats, lossless.line_scales):
        monkeypatch.setattr(module, "SLAB", 256)
    assert round_trip(array) <= 1.02 * whole


def test_what_is_random_is_left_as_it_is():
    rng = np.random.default_rng(0)
    assert not lossless.is_shorter(rng.integers(0, 256, 4000, dtype=np.uint8))
    assert not lossless.is_shorter(
        rng.integers(0, 2**63, 4000, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    )
    assert not lossless.is_shorter(np.zeros((0, 3), np.float32))


def test_a_dictionary_is_for_few_distinct_elements():
    assert dictionary.distinct_of(np.arange(256, dtype=np.uint16)) is not None
    assert dictionary.distinct_of(np.arange(257, dtype=np.uint16)) is None
