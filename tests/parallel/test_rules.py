"""The sharding table: every array of the state has a layout, an optimizer's moments among them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from irm_jax import run
from irm_jax.models import presets
from irm_jax.models.irm import IRM
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel import rules
from irm_jax.parallel.mesh import ShardingError
from irm_jax.training import state
from irm_jax.training.muon import muon


def mesh_of(data, fsdp, model):
    return mesh_lib.make_mesh({"data": data, "fsdp": fsdp, "model": model}, jax.devices()[: data * fsdp * model])


@pytest.mark.parametrize("scan", [False, True])
def test_base_state_is_cut_by_the_rules(micro_config, scan):
    """Golden layout of the paper-size model under fsdp 2 x model 2; Adam's moments follow their parameters."""
    config = presets.preset("base", vocab_size=30_720, num_identities=7_168, scan_layers=scan)
    mesh = mesh_of(2, 2, 2)
    optimizer = run.build(micro_config).optimizer
    abstract = state.abstract_state(IRM(config), optimizer, jax.numpy.ones((1, 70), "int32"), mesh)
    found = {
        rules.path_string(path): leaf.sharding.spec for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }
    layer, lead = ("layers/block", (None,)) if scan else ("layer_3", ())
    for prefix in ("params", "opt_state/1/0/mu", "opt_state/1/0/nu"):
        block = f"{prefix}/image_encoder/blocks/{layer}"
        assert found[f"{block}/attention/query_key_value/kernel"] == P(*lead, "fsdp", None, "model", None)
        assert found[f"{block}/attention/output/kernel"] == P(*lead, "model", None, "fsdp")
        assert found[f"{block}/mlp/expand/kernel"] == P(*lead, "fsdp", "model")
        assert found[f"{block}/mlp/contract/kernel"] == P(*lead, "model", "fsdp")
        assert found[f"{prefix}/text_encoder/word_embedding"] == P("model", "fsdp")
        assert found[f"{prefix}/head_person"] == P("fsdp", "model")
        assert found[f"{prefix}/image_encoder/final_norm/scale"] == P()
    cut = sum(leaf.size for leaf in jax.tree.leaves(abstract) if any(leaf.sharding.spec))
    assert cut > 0.995 * sum(leaf.size for leaf in jax.tree.leaves(abstract))


def test_a_leaf_without_a_rule_is_an_error():
    with pytest.raises(ShardingError, match="no sharding rule matches params/new_thing/weights"):
        rules.leaf_spec("params/new_thing/weights", (4, 4), mesh_of(1, 1, 1))


def test_a_size_that_does_not_divide_is_an_error_with_the_cure():
    with pytest.raises(ShardingError, match=r"30522 does not divide over mesh axis 'model' of 4.*vocab_multiple"):
        rules.leaf_spec("params/text_encoder/word_embedding", (30_522, 768), mesh_of(1, 2, 4))


def test_rules_of_an_encoder_join_the_table(monkeypatch):
    monkeypatch.setattr(rules, "_added", {})
    kernel = (r"image_encoder/stages/\w+/kernel$", (None, "fsdp"))
    mesh = mesh_of(1, 2, 2)
    with pytest.raises(ShardingError, match="no sharding rule matches"):
        rules.leaf_spec("params/image_encoder/stages/first/kernel", (256, 256), mesh)
    for _ in range(2):
        rules.add_rules("convnext", [kernel])
    assert rules.leaf_spec("params/image_encoder/stages/first/kernel", (256, 256), mesh) == P(None, "fsdp")
    with pytest.raises(ValueError, match="convnext has sharding rules already"):
        rules.add_rules("convnext", [])


PARAMETERS = {
    "image_encoder/blocks/layers/block/mlp/expand/kernel": (3, 8, 16),
    "image_encoder/blocks/layers/block/mlp/expand/bias": (3, 16),
    "text_encoder/word_embedding": (32, 8),
    "head_cls": (8, 24),
    "cls_neck/scale": (8,),
}
"""Shapes by path: layers stacked by a scan, a table, a head, a vector."""
OPTIMIZERS = {
    "adamw": lambda: optax.adamw(1e-2),
    "lion": lambda: optax.lion(1e-2),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=8),
    "muon": lambda: muon(lambda step: jnp.float32(1e-2)),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(1e-2),
}
KERNEL, EMBEDDING, HEAD = (
    "image_encoder/blocks/layers/block/mlp/expand/kernel", "text_encoder/word_embedding", "head_cls",
)  # fmt: skip
MOMENTS = {  # of each optimizer: arrays of its state, and their layout
    "adamw": {f"0/mu/{KERNEL}": P(None, "fsdp", "model"), f"0/nu/{EMBEDDING}": P("model", "fsdp"), "0/count": P()},
    "lion": {f"0/mu/{KERNEL}": P(None, "fsdp", "model"), f"0/mu/{HEAD}": P("fsdp", "model")},
    "adafactor": {
        f"0/v_row/{KERNEL}": P(None, "fsdp"), f"0/v_col/{KERNEL}": P(None, "model"), f"0/v/{KERNEL}": P(),
        f"0/v_col/{EMBEDDING}": P("model"), f"0/v_row/{EMBEDDING}": P("fsdp"), "0/count": P(),
    },
    "muon": {
        f"inner_states/muon/inner_state/0/mu/{KERNEL}": P(None, "fsdp", "model"),
        f"inner_states/adam/inner_state/0/nu/{EMBEDDING}": P("model", "fsdp"),
        "inner_states/adam/inner_state/0/count": P(),
    },
    "schedule_free": {f"z/{KERNEL}": P(None, "fsdp", "model"), f"z/{HEAD}": P("fsdp", "model"), "weight_sum": P()},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_state_follows_its_parameters(name, monkeypatch):
    """The layouts on fsdp 2 x model 2; two updates there are those of one device."""
    monkeypatch.setattr(rules, "SMALL", 4)  # split the arrays of this test
    optimizer = OPTIMIZERS[name]()
    rng = np.random.default_rng(0)
    params, *gradients = (
        {path: rng.normal(size=shape).astype(np.float32) for path, shape in PARAMETERS.items()} for _ in range(3)
    )

    def init(params):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return {"params": params, "opt_state": optimizer.init(params)}

    def update(train_state, gradient):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, opt_state = optimizer.update(gradient, train_state["opt_state"], train_state["params"])
            return {"params": optax.apply_updates(train_state["params"], updates), "opt_state": opt_state}

    mesh = mesh_of(1, 2, 2)
    layouts = rules.shardings(jax.eval_shape(init, params), mesh)
    specs = {rules.path_string(path): leaf.spec for path, leaf in jax.tree_util.tree_leaves_with_path(layouts)}
    for path, expected in MOMENTS[name].items():
        assert specs[f"opt_state/{path}"] == expected, path

    def run_on(**options):
        train_state = jax.jit(init, **options)(params)
        for gradient in gradients:
            train_state = jax.jit(update, **options)(train_state, gradient)
        return train_state

    split, whole = run_on(out_shardings=layouts), run_on()
    for (path, x), y, z in zip(
        jax.tree_util.tree_leaves_with_path(split), jax.tree.leaves(whole), jax.tree.leaves(layouts), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6, err_msg=rules.path_string(path))
        assert x.sharding == z


def test_a_state_of_no_parameter_is_replicated(monkeypatch):
    monkeypatch.setattr(rules, "SMALL", 4)
    mesh, parameters = mesh_of(1, 2, 2), {"head_cls": (8, 24)}
    for path, shape, expected in (
        ("opt_state/0/mu/head_cls", (8, 24), P("fsdp", "model")),
        ("opt_state/0/history/head_cls", (5, 8, 24), P()),  # axes that the parameter lacks
        ("opt_state/0/preconditioner/head_cls", (8, 8), P()),
        ("opt_state/0/trace", (64, 64), P()),
        ("opt_state/0/scale", (), P()),
    ):
        assert rules.optimizer_leaf_spec(path, shape, parameters, mesh) == expected, path
