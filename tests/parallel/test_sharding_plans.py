"""Sharding plans: the layout of every leaf, the largest identity heads, and that a plan computes what one device does.

The golden table is sharding_plans.txt beside this file. After a deliberate change of the rules, write it again and read
the diff: IRM_JAX_WRITE_GOLDEN=1 python -m pytest tests/parallel/test_sharding_plans.py -k golden
"""

import dataclasses
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import moved_sizes
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipelines.batches import stated_data
from data_pipelines.batches.prefetch import ReadAhead
from irm_jax import run
from irm_jax.compile import programs
from irm_jax.compile.traffic import count_traffic
from irm_jax.config import load
from irm_jax.losses.identity import identity_loss
from irm_jax.models import transformer
from irm_jax.models.encoders.vit import ViT
from irm_jax.models.encoders.vit_module import ViTModule
from irm_jax.models.irm import IRM
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel import rules
from irm_jax.training import state

GOLDEN = Path(__file__).parent / "sharding_plans.txt"
PLANS = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "model": (2, 1, 4), "mixed": (2, 2, 2)}
"""(data, fsdp, model) over eight devices."""


def mesh_of(*shape):
    return mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, shape, strict=True)), jax.devices()[: math.prod(shape)])


def words(layout):
    """A PartitionSpec as the table writes it: `fsdp . model`; `whole` where no axis is split."""
    axes = ["+".join(axis) if isinstance(axis, tuple) else axis or "." for axis in layout]
    return " ".join(axes) if any(axis != "." for axis in axes) else "whole"


def test_golden_layout_of_every_leaf():
    """IRM++ at paper scale: a line per leaf, a column per plan; moments and momentum model follow the parameters."""
    config = load("irm_pp")
    planned = run.planned(config, mesh_of(8, 1, 1))
    assert planned.model.config.num_identities == 7168  # 6,555 people of the nine sets, padded
    abstract = planned.abstract_state()
    columns = {}
    for name, shape in PLANS.items():
        layouts = rules.shardings(abstract, mesh_of(*shape))
        columns[name] = {
            rules.path_string(path): words(leaf.spec) for path, leaf in jax.tree_util.tree_leaves_with_path(layouts)
        }
    lines = [f"# {' | '.join(['leaf', *PLANS])}"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        name = rules.path_string(path)
        cells = [columns[plan][name] for plan in PLANS]
        for prefix in ("opt_state/1/0/mu/", "opt_state/1/0/nu/", "momentum_params/"):
            if name.startswith(prefix):
                own = name.replace(prefix, "params/", 1)
                assert cells == [columns[plan][own] for plan in PLANS], name
                break
        else:
            lines.append(" | ".join([f"{name} {leaf.dtype}{list(leaf.shape)}", *cells]))
    found = "\n".join(lines) + "\n"
    if os.environ.get("IRM_JAX_WRITE_GOLDEN"):
        GOLDEN.write_text(found, encoding="utf-8")
    assert found == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.usefixtures("quick_programs")
def test_all_people_of_the_benchmark_fit_into_sharded_heads(micro_config):
    """333,825 identities, padded, are split over the model axis, and a step never gathers a whole head on a device."""
    with micro_config.unlocked():
        for name in set(micro_config.data.train) - {"procedural_trad"}:
            del micro_config.data.train[name]
    micro_config.data.procedural.train_people = 333_825
    micro_config.data.dir = "nowhere"
    micro_config.data.batch_size = 32
    micro_config.model.identity_multiple = 1024
    micro_config.mesh.update({"data": 2, "fsdp": 2, "model": 2})
    data = stated_data.plan_training(micro_config, max_length=40)
    assert data.space.num_head == 333_825
    mesh = mesh_of(2, 2, 2)
    (program,) = programs.training(run.build(micro_config, mesh=mesh, data=data))
    head = program.arguments[0].params["head_person"]
    assert head.shape[1] == 327 * 1024
    assert head.sharding.spec == P("fsdp", "model")
    assert head.sharding.shard_shape(head.shape) == (8, 327 * 512)
    assert "334848" in program.lower(lowering_platforms=("tpu",)).as_text()

    def loss(weight, features, identity):
        return jnp.sum(identity_loss(features, weight, identity, jnp.ones((64, weight.shape[1]), bool))[0])

    rows = NamedSharding(mesh, P(mesh_lib.ROWS))
    weight = jax.ShapeDtypeStruct((64, 334_848), jnp.float32, sharding=NamedSharding(mesh, P("fsdp", "model")))
    features = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=rows)
    identity = jax.ShapeDtypeStruct((64,), jnp.int32, sharding=rows)
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.value_and_grad(loss), out_shardings=(None, weight.sharding)).lower(
            weight, features, identity
        ).compile()  # fmt: skip
    # FSDP gathers one half of the head and sums its gradient.
    whole = 64 * 334_848 * 4
    assert max(one.size for one in count_traffic(compiled.as_text()).collectives) <= whole // 2


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize("scan", [False, True])
def test_fsdp_moves_parameters_and_no_activations(scan):
    """The patch embedding, split over its outputs, must not pass this layout on: blocks would keep it and move rows."""
    mesh = mesh_of(1, 8, 1)
    ViT.add_layouts()
    encoder = ViTModule(
        transformer.BlockConfig(width=128, heads=4), 2, (64, 32), 16, 16, part_tokens=0, scan_layers=scan
    )
    images = jax.ShapeDtypeStruct((128, 64, 32, 3), jnp.uint8, sharding=NamedSharding(mesh, P(mesh_lib.ROWS)))
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), np.zeros(images.shape, np.uint8), train=False))
    layouts = rules.shardings(variables, mesh)
    variables = jax.tree.map(lambda v, s: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=s), variables, layouts)

    def gradient(variables, images):
        found = jax.grad(lambda v: jnp.sum(jnp.square(encoder.apply(v, images, train=False).cls)))(variables)
        return jax.lax.with_sharding_constraint(found, layouts)

    with jax.set_mesh(mesh):
        text = jax.jit(gradient).lower(variables, images).compile().as_text()
    patch_kernel = 16 * 16 * 3 * 128
    assert max(moved_sizes(text)) == patch_kernel < images.shape[0] * 9 * 128  # 9 tokens an image


def one_step(config, data, model, batch, before, shape):
    """Loss, Adam's first moment and update of one step from the state `before`; checks the layouts that come out."""
    mesh = mesh_of(*shape)
    start = jax.device_put(before, rules.shardings(before, mesh))
    step = run.build(config, mesh=mesh, data=data, model=model).train_step
    with jax.set_mesh(mesh):
        arrays = mesh_lib.to_global(batch, mesh_lib.batch_sharding(mesh))
        after, metrics = step(start, arrays, jnp.asarray(data.plan.constant_tokens), jax.random.key(1))
    planned = rules.shardings(after, mesh)
    for (path, leaf), layout in zip(jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(planned), strict=True):
        assert leaf.sharding.is_equivalent_to(layout, leaf.ndim), (shape, rules.path_string(path))
    update = jax.tree.map(lambda x, y: np.asarray(x) - y, after.params, before.params)
    return float(metrics["loss"]), jax.tree.map(np.asarray, after.opt_state[1][0].mu), update


@pytest.mark.nightly
@pytest.mark.usefixtures("quick_programs")
def test_tensor_parallel_alone_computes_what_one_device_does(micro_config):
    """In float64, to 1e-12 and 1e-9. Other plans and mixtures, under every loss: see tests/training/test_step.py."""
    with micro_config.unlocked():
        for name in set(micro_config.data.train) - {"procedural_trad"}:
            del micro_config.data.train[name]
    micro_config.data.batch_size = 32
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        single = run.build(micro_config, mesh=mesh_of(1, 1, 1))
        data, model = single.data, single.model
        with data.stream(0, 1, range(8), ReadAhead(workers=0, threads=0, prefetch=1)) as stream:
            batch = next(stream)[1]
        before = state.create_state(model, single.optimizer, data.plan.constant_tokens, 0, single.mesh)
        wide = lambda x: np.asarray(x, np.float64 if x.dtype == jnp.float32 else x.dtype)  # noqa: E731
        before = jax.tree.map(wide, before)
        model = IRM(dataclasses.replace(model.config, dtype="float64"))
        common = (micro_config, data, model, batch, before)
        loss, gradient, update = one_step(*common, (1, 1, 1))
        other = one_step(*common, (1, 1, 2))
        assert other[0] == pytest.approx(loss, rel=1e-12)
        for found, expected in ((other[1], gradient), (other[2], update)):
            norm = math.sqrt(sum(float(np.sum(np.square(x))) for x in jax.tree.leaves(expected)))
            for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                assert float(np.abs(x - y).max()) <= 1e-9 * norm
