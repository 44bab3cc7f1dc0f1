"""README.md says nothing that is not there: paths, modules, configuration keys."""

import importlib.util
import re
from pathlib import Path

import pytest

from configs import default

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILE_MAP = README.split("## File map")[1].split("\n## ")[0]


def paths() -> list[str]:
    """Everything that README names as a path of the checkout."""
    mapped = [
        path for row in re.findall(r"^\| (`.*?) \|", FILE_MAP, re.MULTILINE) for path in re.findall(r"`(.*?)`", row)
    ]
    mentioned = re.findall(r"\b(?:configs|tests|launch|benchmarks|irm_jax|data_pipelines)/[\w/]+\.(?:py|sh)\b", README)
    return sorted({*mapped, *mentioned})


@pytest.mark.parametrize("path", paths())
def test_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(
    "module", sorted(set(re.findall(r"python -m ((?:irm_jax|data_pipelines|benchmarks)[\w.]+)", README)))
)
def test_module_can_be_run(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize(
    "key",
    sorted(
        {*re.findall(r"--config\.([a-z][\w.]*\w)", README)} - {"a.b"}
        | {*re.findall(r"`((?:data|loss|model|evaluation)\.\w+)[=`]", README)}
    ),
)
def test_configuration_key_exists(key: str) -> None:
    entry = default.get_config()
    *tables, last = key.split(".")
    for table in tables:
        entry = entry[table]
    assert last in entry
