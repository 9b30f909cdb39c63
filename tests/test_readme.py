"""What README tells a user to type works."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx

import jpq_jax
from experiments import config as configuration

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = blocks("python")[0]
    assert sum(bool(line) for line in example.splitlines()) <= 15
    space: dict[str, Any] = {}
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):  # as users have it
        exec(compile(example, "README.md", "exec"), space)  # noqa: S102
    codes = jpq_jax.artifact.load(tmp_path / "model.jpq", like=space["params"]).codes
    assert jpq_jax.paper_ratio(codes) >= 20
    weights = jpq_jax.dequantize(codes)["kernel"]
    assert 0 < int((weights != 0).sum()) < weights.size


def run(block: str, **names: Any) -> dict[str, Any]:
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    return names


def only_block_with(text: str) -> str:
    [found] = [block for block in blocks("python") if text in block]
    return found


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])


def test_a_file_is_loaded_into_an_nnx_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    before, model = Net(nnx.Rngs(0)), Net(nnx.Rngs(1))
    jpq_jax.artifact.save("model.jpq", nnx.state(before, nnx.Param))
    run(only_block_with("nnx.update"), jpq_jax=jpq_jax, nnx=nnx, model=model)
    for a, b in zip(before.layers, model.layers, strict=True):
        np.testing.assert_array_equal(a.kernel[...], b.kernel[...])


def test_a_file_is_loaded_into_a_linen_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    model, inputs = nn.Sequential([nn.Dense(4), nn.Dense(2)]), jnp.ones((1, 3))
    variables = model.init(jax.random.key(0), inputs)
    jpq_jax.artifact.save("model.jpq", variables)
    space = run(only_block_with("model.apply"), jpq_jax=jpq_jax, model=model, inputs=inputs)
    np.testing.assert_array_equal(space["outputs"], model.apply(variables, inputs))


def test_training_resumes_from_orbax(tmp_path: Path):
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)}
    optimizer = jpq_jax.latent(optax.sgd(0.1), jpq_jax.joint(jpq_jax.Budget(ratio=10)))

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    first, block = (params, optimizer.init(params)), only_block_with("CheckpointManager")
    for _ in range(3):
        first = step(*first)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        run_of = {"params": first[0], "state": first[1]}
        manager.save(3, args=ocp.args.StandardSave(run_of))
    names = {"folder": tmp_path / "run", "params": params, "optimizer": optimizer, "ocp": ocp}
    found = run(block, **names)
    found["manager"].close()
    second = found["run"]["params"], found["run"]["state"]
    for a, b in zip(jax.tree.leaves(step(*first)), jax.tree.leaves(step(*second)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_ci_runs_the_test_command() -> None:
    tests = next(block for block in blocks("bash") if "pytest" in block).strip()
    assert tests in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("block", blocks("bash"))
def test_named_files_are_there(block: str) -> None:
    for module in re.findall(r"-m (experiments[\w.]*)", block):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), module


PAPERS = (ROOT / "docs" / "papers.md").read_text()
SOURCES = "\n".join(
    path.read_text()
    for folder in ("jpq_jax", "experiments")
    for path in (ROOT / folder).rglob("*.py")
)


def test_the_page_of_papers_names_what_is_there() -> None:
    files = re.findall(r"`([\w/]+\.py)`", PAPERS)
    assert len(files) > 20
    for name in files:
        assert any((ROOT / folder / name).exists() for folder in (".", "jpq_jax")), name
    for name, preset in re.findall(r"`(\w+) --preset=([\w-]+)`", PAPERS):
        assert preset in configuration.presets(name), (name, preset)
    for named in re.findall(r"`(\w+)(?:\(|`)", PAPERS):
        spoken = named in vars(jpq_jax) or named in configuration.names()
        assert spoken or re.search(rf"\b(def|class) {named}\b", SOURCES), named
    for page in re.findall(r"\]\((\w+\.md)\)", PAPERS):
        assert (ROOT / "docs" / page).exists()
