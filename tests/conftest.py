"""Test settings: eight simulated CPU devices, strict promotion, warnings as errors (named exceptions in pyproject)."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from pathlib import Path

import jax
import pytest
from absl import flags
from ml_collections import ConfigDict

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Grain reads absl flags, which pytest never parses.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

MICRO = {
    "train_people": 16,
    "test_people": 6,
    "image_size": (64, 32),
}


@pytest.fixture(scope="session")
def procedural_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The procedural benchmark at its smallest, as real shards."""
    from data_pipelines import procedural

    folder = tmp_path_factory.mktemp("procedural")
    procedural.build(folder, seed=0, workers=1, progress=False, **MICRO)
    return folder


@pytest.fixture
def micro_config(procedural_dir: Path) -> ConfigDict:
    """All six tasks on the smallest model that has every part: compiles in seconds."""
    from configs import procedural

    config = procedural.get_config()
    config.data.dir = str(procedural_dir)
    config.data.procedural.update(MICRO)
    config.data.batch_size = 8 * 4 * 5 + 8
    config.data.batch_blocks = 8
    config.data.threads = 1
    config.compilation_cache = ""
    config.mesh.data = 1
    config.model.update(
        {"width": 16, "image_size": (64, 32), "image_depth": 1, "image_heads": 2, "text_depth": 1, "text_heads": 2,
         "template_depth": 1, "template_heads": 2, "projection_width": 8, "editing_depth": 2, "mlp_ratio": 2.0}
    )  # fmt: skip
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 2})
    config.train.update({"steps": 4, "log_every": 1})
    config.checkpoint.update({"every": 2, "asynchronous": False})
    return config
