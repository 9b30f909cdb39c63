"""A file read leaf by leaf gives what it gives as a whole, decodes no more than it must, and is as careful."""

from __future__ import annotations

from pathlib import Path

import files
import jax.numpy as jnp
import numpy as np
import pytest

from jpq_jax import artifact, leaves_with_paths
from jpq_jax.artifact import container, leaf

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.newest
@pytest.mark.parametrize("version", ["v1.jpq", "v2.jpq", "v3.jpq"])
def test_leaves_are_those_of_the_whole_file(version: str):
    lazy = artifact.LazyArtifact(GOLDEN / version)
    codes, extras, nbytes = artifact.load(GOLDEN / version)
    assert (lazy.extras, lazy.nbytes) == (extras, nbytes)
    leaves = dict(leaves_with_paths(codes))
    assert set(lazy) == set(leaves)
    assert len(lazy) == len(leaves)
    for path in sorted(lazy, reverse=True):
        files.assert_same(lazy[path], leaves[path])
        assert lazy.shapes[path].shape == leaves[path].shape


def test_only_the_block_asked_for_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(container, "_BLOCK", 20)
    tree = {name: files.random_codes((6, 5)) for name in "abcd"} | {"e": jnp.ones(7)}
    artifact.save(tmp_path / "a.jpq", tree)
    read: list[str] = []
    original = leaf.read_leaf

    def noted(reader, record):
        read.append(str(record.path[0]))
        return original(reader, record)

    monkeypatch.setattr(leaf, "read_leaf", noted)
    lazy = artifact.LazyArtifact(tmp_path / "a.jpq")
    assert not read
    for name in ("c", "c", "a", "e"):
        files.assert_same(lazy[name], tree[name])
    assert read == ["c", "a", "e"]


def test_no_such_leaf():
    with pytest.raises(KeyError):
        artifact.LazyArtifact(GOLDEN / "v2.jpq")["nothing"]


def test_leaves_of_one_name(tmp_path: Path):
    artifact.save(tmp_path / "a.jpq", {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"a\.jpq: leaf 'a/b': two leaves are called so"):
        artifact.LazyArtifact(tmp_path / "a.jpq")


def test_damaged_files_are_named(tmp_path: Path):
    path = tmp_path / "bad.jpq"
    path.write_bytes((GOLDEN / "v2.jpq").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"bad\.jpq: the checksum"):
        artifact.LazyArtifact(path)


def test_a_leaf_that_is_wrong_is_named_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "bad.jpq"
    artifact.save(path, {"w": files.random_codes((4, 4))})
    lazy = artifact.LazyArtifact(path)

    def refuse(reader, record):
        raise ValueError("leaf 'w': wrong")

    monkeypatch.setattr(leaf, "read_leaf", refuse)
    with pytest.raises(ValueError, match=r"bad\.jpq: leaf 'w': wrong"):
        lazy["w"]
    assert np.prod(lazy.shapes["w"].shape) == 16
