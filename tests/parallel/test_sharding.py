"""The rule table: every leaf of the state has a layout, and the ones that matter have the one we mean."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from irm_jax import run
from irm_jax.models import presets
from irm_jax.models.irm import IRM
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel import rules
from irm_jax.parallel.mesh import ShardingError
from irm_jax.training import state


def mesh_of(data, fsdp, model):
    return mesh_lib.make_mesh({"data": data, "fsdp": fsdp, "model": model}, jax.devices()[: data * fsdp * model])


@pytest.mark.parametrize("scan", [False, True])
def test_base_state_is_cut_by_the_rules(micro_config, scan):
    """Golden layout of the paper-size model under fsdp 2 x model 2; Adam's moments follow their parameters."""
    config = presets.preset("base", vocab_size=30_720, num_identities=7_168, scan_layers=scan)
    mesh = mesh_of(2, 2, 2)
    optimizer = run.make_optimizer(micro_config)
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


def test_mesh_that_does_not_fit_the_devices_is_an_error():
    with pytest.raises(ShardingError, match="needs 3 devices"):
        mesh_lib.make_mesh({"data": 3, "fsdp": 1, "model": 1}, jax.devices()[:2])
    assert dict(mesh_lib.make_mesh({"data": -1, "fsdp": 2, "model": 1}, jax.devices()).shape) == {
        "data": 4,
        "fsdp": 2,
        "model": 1,
    }


def test_one_process_holds_all_blocks():
    assert mesh_lib.addressable_blocks(mesh_of(4, 2, 1), 16) == list(range(16))


def test_only_a_tpu_that_cuts_parameters_is_told_how_to_gather_them():
    def mesh(platform, fsdp):
        device = types.SimpleNamespace(platform=platform)
        return types.SimpleNamespace(devices=np.array([device]), shape={"data": 1, "fsdp": fsdp, "model": 1})

    assert mesh_lib.compiler_options(mesh("tpu", 4))
    for other in (mesh("tpu", 1), mesh("cpu", 4), mesh_of(1, 4, 1)):
        assert mesh_lib.compiler_options(other) is None
