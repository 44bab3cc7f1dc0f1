"""The tree of tests is the tree of the code."""

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
OWN = {
    "soak": "random kills of commands, and what they leave",
    "fixtures": "files that earlier versions wrote",
    "parity": "the models beside PyTorch implementations",
    "cloud": "object storage, for every package that reads or writes there",
    "extending": "the code of docs/extending.md",
}
"""Folders that hold no tests of one package."""


def test_every_folder_of_tests_is_a_folder_of_the_code() -> None:
    roots = (ROOT, ROOT / "irm_jax")
    folders = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("*") if path.is_dir()]
    tested = [path for path in folders if path.parts[0] not in OWN and "__pycache__" not in path.parts]
    assert len(tested) > 10
    assert [str(path) for path in tested if not any((root / path).is_dir() for root in roots)] == []


def test_no_two_files_have_one_name() -> None:
    """pytest imports them by their names."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
