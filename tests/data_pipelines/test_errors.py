"""The commands that install an extra name one that pyproject.toml has."""

import re
import tomllib
from pathlib import Path

from data_pipelines.errors import pip_line

ROOT = Path(__file__).parents[2]


def test_every_extra_that_a_message_names_exists() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [path.read_text("utf-8") for top in ("data_pipelines", "irm_jax") for path in (ROOT / top).rglob("*.py")]
    named = {name for text in texts for name in re.findall(r"pip_line\(['\"](\w+)['\"]\)|irm_jax\[(\w+)\]", text)}
    extras = {one for pair in named for one in pair if one}
    assert {"gpu", "tpu", "convert", "export", "onnx", "gcs", "search", "milvus", "explain", "hub", "wandb"} <= extras
    assert extras <= set(known)
    assert not [text for text in texts if re.search(r"pip install (-c \S+ )?-e", text)]
    assert pip_line("hub") == "pip install 'irm_jax[hub]'"
