"""States to start from converted weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import weights
from jax.sharding import NamedSharding, PartitionSpec

from irm_jax.convert import warm_start as module
from irm_jax.convert.warm_start import Sources
from irm_jax.losses.instruction_similarity import init_mean
from irm_jax.models import presets
from irm_jax.models.config import IRMConfig
from irm_jax.models.irm import IRM, initialise
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.training.momentum import averaged_part
from irm_jax.training.state import TrainState, with_variables


def warm_start(state: TrainState, model: IRMConfig, sources: Sources) -> TrainState:
    """The state of a fresh run that starts from `sources`."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return with_variables(state, module.warm_start(variables, model, sources), optax.identity())


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
        jnp.zeros((), jnp.int32), params, whole["batch_stats"], init_mean(2, 8), optax.EmptyState(),
        averaged_part(params),
    )  # fmt: skip
