"""The package's front door: cheap to import, with the embedder behind it."""

import subprocess
import sys

import pytest

import irm_jax
from irm_jax import embedder


def test_embedder_is_the_one_of_evaluate() -> None:
    assert irm_jax.Embedder is embedder.Embedder


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Embeder'"):
        irm_jax.Embeder  # noqa: B018


def test_import_loads_no_jax() -> None:
    code = "import sys, irm_jax, irm_jax.config.check; print('jax' in sys.modules, 'data_pipelines' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
