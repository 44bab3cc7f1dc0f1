"""Converted folders and fresh states for the tests of warm starts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights
from jax.sharding import NamedSharding, PartitionSpec

from irm_jax.convert import folder
from irm_jax.convert.conversion import Options, convert
from irm_jax.convert.source import Source
from irm_jax.losses.instruction_similarity import init_mean
from irm_jax.models import presets
from irm_jax.models.config import IRMConfig
from irm_jax.models.irm import IRM, initialise
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.training.momentum import averaged_part
from irm_jax.training.state import TrainState


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A conversion of every kind, and of a BERT with its head of hidden words."""
    found = {}
    for kind, shapes in (
        ("bert", weights.bert()), ("vit", weights.vit()), ("pass", weights.pass_vit()), ("albef", weights.albef()),
        ("masked_bert", weights.bert("bert.") | weights.word_head()), ("irm_release", weights.irm_release()),
    ):  # fmt: skip
        place = tmp_path_factory.mktemp(kind)
        weights.write(shapes, place / "w.safetensors")
        if kind == "irm_release":
            words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmno"]
            (place / "vocab.txt").write_text("\n".join(words) + "\n")
        source = Source(place / "w.safetensors")
        found[kind] = str(
            folder.save(convert(kind.removeprefix("masked_"), source, Options(heads=2)), source, place / "out")
        )
    return found


def ones(**options: Any) -> tuple[IRMConfig, TrainState]:
    """A model, and its state of ones in the layouts of a mesh of eight devices, with a momentum model."""
    model = presets.preset("small", **{**weights.SIZES, "vocab_size": 32, "num_identities": 16, **options})
    shapes = jax.eval_shape(
        lambda: IRM(model).init(jax.random.key(0), jnp.ones((1, model.max_length), jnp.int32), method=initialise)
    )
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "model": 2})
    host = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    whole = jax.device_put(host, NamedSharding(mesh, PartitionSpec()))
    params, text = whole["params"], whole["params"]["text_encoder"]
    split = NamedSharding(mesh, PartitionSpec("model", "fsdp"))
    text["word_embedding"] = jax.device_put(text["word_embedding"], split)
    return model, TrainState(
        jnp.zeros((), jnp.int32), params, whole["batch_stats"], init_mean(2, 8), (), averaged_part(params)
    )


@pytest.fixture(scope="session")
def fresh() -> tuple[IRMConfig, TrainState]:
    """`ones` without layers that read images."""
    return ones()


@pytest.fixture(scope="session")
def fresh_fusion() -> tuple[IRMConfig, TrainState]:
    """`ones` with as many text layers as ALBEF's file has, and one that reads images."""
    return ones(text_depth=2, fusion_depth=1)
