"""The import order is the flow: a file imports only from what stands before it."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jpq_jax"

# Each may import those before it; the artifact sees the vocabulary only.
ORDER = [
    "sharding",
    "granularity",
    "vocabulary",
    "names",
    "rounding",
    "fisher",
    "plan",
    "sketch",
    "rate",
    "allocation",
    "projection",
    "transforms",
]
ALLOWED = {name: set(ORDER[: i + 1]) for i, name in enumerate(ORDER)}
ALLOWED["artifact"] = {"vocabulary", "artifact"}
ALLOWED["removal"] = {"vocabulary", "removal"}
ALLOWED["policy"] = {*ALLOWED["projection"], "removal", "artifact", "policy"}  # bytes of a file
# These see both sides, the codes and the file.
AFTER = ["file_budget", "checkpoint", "report", "post_training", "cli"]
ALLOWED |= {
    name: {*ORDER, "artifact", *AFTER[: i + 1]} - {"transforms"} for i, name in enumerate(AFTER)
}
ALLOWED["finalize"] = {*ORDER, "file_budget", "finalize"}
ALLOWED["recipe"] = {*ALLOWED["finalize"], "recipe"}

FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            names += [node.module]
            if node.module == "jpq_jax":
                names += [f"jpq_jax.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("jpq_jax.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_from_before(path: Path) -> None:
    surplus = imported(path) - ALLOWED[part_of(path)]
    assert not surplus, f"{path.name} imports {surplus}"


def test_every_part_has_its_place() -> None:
    assert {part_of(path) for path in FILES} == set(ALLOWED)


def test_the_library_needs_no_experiment() -> None:
    for path in FILES:
        assert "experiments" not in path.read_text(), path


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in (PACKAGE, ROOT / "experiments")
    for path in sorted(package.rglob("*.py"))
]


@pytest.mark.newest
@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name: str) -> None:
    importlib.import_module(name)
