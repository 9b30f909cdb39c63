"""What README tells a user to type works."""

import re
from pathlib import Path
from typing import Any

import jax
import pytest

import jpq_jax
from experiments import config as configuration

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [example] = blocks("python")
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
