"""docs/architecture.md: every file, folder and name that it cites exists, and its map leaves no package out."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
SPANS = re.findall(r"`([^`\n]+)`", PAGE)
NAMES = sorted({span for span in SPANS if "::" in span} - {"path/file.py::name"})


def members(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Functions, classes and assigned names of a module or a class."""
    found: dict[str, ast.stmt] = {}
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[statement.name] = statement
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = statement
        elif isinstance(statement, ast.Assign):
            found |= {target.id: statement for target in statement.targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("cited", NAMES)
def test_a_cited_name_exists(cited: str) -> None:
    path, _, name = cited.partition("::")
    body = ast.parse((ROOT / path).read_text("utf-8")).body
    *classes, last = name.split(".")
    for outer in classes:
        found = members(body)[outer]
        assert isinstance(found, ast.ClassDef)
        body = found.body
    assert last in members(body), f"{path} defines no {name}"


def test_cited_files_and_folders_exist() -> None:
    files = {span for span in SPANS if "/" in span and re.search(r"\.(py|md|j2|css)$", span)}
    files |= {cited.partition("::")[0] for cited in NAMES}
    assert files
    assert [name for name in sorted(files - {"path/file.py"}) if not (ROOT / name).is_file()] == []
    folders = {span for span in SPANS if span.endswith("/") and span != "per_query/"}
    assert [name for name in sorted(folders) if not (ROOT / name).is_dir()] == []


def test_the_map_names_every_package() -> None:
    mapped = set(re.findall(r"^\| `([^`]+/)` \|", PAGE, re.MULTILINE))
    packages = {
        f"{init.parent.relative_to(ROOT).as_posix()}/"
        for top in ("data_pipelines", "irm_jax") for init in (ROOT / top).rglob("__init__.py")
    }  # fmt: skip
    assert packages <= mapped
