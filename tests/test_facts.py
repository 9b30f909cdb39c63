"""What a file was made of, where it holds nothing but its model: by its run, or its record."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jpq_jax
from experiments.facts import FACTS, facts_of
from experiments.publish import ARTIFACTS, RESULTS

SMALLEST = ARTIFACTS / "lenet5_mnist-bytes-smallest.jpq"
SAID = dict.fromkeys(FACTS, "said")


def recorded() -> dict[str, Any]:
    return json.loads((RESULTS / "lenet5_mnist-bytes-smallest.json").read_text())["runs"][0]


@pytest.mark.parametrize("name", ["lenet5_mnist-bytes-lossless.jpq", "other.jpq", "artifact.jpq"])
def test_a_copy_is_known_by_its_bytes(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(SMALLEST.read_bytes())
    assert facts_of(path, {}) == recorded()


def test_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link.jpq").symlink_to(SMALLEST)
    assert facts_of(tmp_path / "link.jpq", {}) == recorded()


def written(folder: Path, results: dict[str, Any] | None, name: str = "artifact.jpq") -> Path:
    path = folder / name
    jpq_jax.artifact.save(path, {"w": np.ones(3, np.float32)})
    if results is not None:
        results = {"file_bytes": path.stat().st_size} | results
        (folder / "results.json").write_text(json.dumps(results))
    return path


def test_a_run_says_what_its_file_is(tmp_path: Path) -> None:
    path = written(tmp_path, SAID | {"units": [8, 16, 40]})
    results = SAID | {"units": [8, 16, 40], "file_bytes": path.stat().st_size}
    assert facts_of(path, {}) == results
    (tmp_path / "link.jpq").symlink_to(path)
    assert facts_of(tmp_path / "link.jpq", {}) == results


def test_the_file_itself_comes_first(tmp_path: Path) -> None:
    path = written(tmp_path, dict.fromkeys(FACTS, "of its run"))
    assert facts_of(path, SAID) == SAID
    assert facts_of(SMALLEST, SAID) == SAID


@pytest.mark.parametrize(
    ("results", "name"),
    [
        (None, SMALLEST.name),  # a record's name, but not its bytes
        (SAID | {"file_bytes": 10**6}, "artifact.jpq"),  # since written anew
        (SAID, "other.jpq"),  # not the file that the run wrote
        ({}, "artifact.jpq"),
    ],
)
def test_facts_of_another_file_are_not_taken(
    results: dict[str, Any] | None, name: str, tmp_path: Path
) -> None:
    path = written(tmp_path, results, name)
    with pytest.raises(ValueError, match=rf"{name}: its extras lack \['config', 'baseline_acc"):
        facts_of(path, {"dataset": "mnist", "model": "lenet5"})
