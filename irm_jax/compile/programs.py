"""The programs of a run over abstract arrays: the training step, embedding and ranking, ready to be lowered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipelines import options
from data_pipelines.batches.make import batch_spec
from data_pipelines.images import Size
from irm_jax.compile import analytic_flops, chips
from irm_jax.config.keys import COMPILED_STEPS
from irm_jax.evaluation.embed import TABLE_ROWS
from irm_jax.evaluation.ranking import device, rank
from irm_jax.logs import timing
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.run import Run, build, model_config

RANKED_GALLERY = 82_161
"""Images in MSMT17's gallery, the largest among the test sets of the paper."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with its abstract arguments, and the mesh that is in scope when it is called."""

    name: str
    function: Any
    arguments: tuple[Any, ...]
    mesh: Mesh
    static: dict[str, Any] = dataclasses.field(default_factory=dict)

    def trace(self) -> Any:
        """The program as jax.stages.Traced."""
        with jax.set_mesh(self.mesh):
            return self.function.trace(*self.arguments, **self.static)

    def lower(self, **options: Any) -> Any:
        """The program as jax.stages.Lowered; `options`, such as lowering_platforms, go to jax."""
        with jax.set_mesh(self.mesh):
            return self.trace().lower(**options)


def abstract_batch(run: Run, image_size: Size | None = None) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The arrays of a training batch by instruction kind: [R, b, ...], with accumulation [A, R, b, ...].

    `image_size`: of the rows' images, where they grow (`config.data.growth`); None stands for the full size.
    """
    config, sizes = run.config, run.model.config
    accumulate = config.optimizer.accumulate
    lead = (accumulate,) if accumulate > 1 else ()
    layout = mesh_lib.batch_sharding(run.mesh, leading=len(lead))
    second_view = config.momentum.second_view and options.needs_keys(config)
    spec = batch_spec(
        run.data.plan, image_size or sizes.image_size, sizes.instruction_image_size, second_view=second_view
    )
    return {
        kind: {
            name: jax.ShapeDtypeStruct((*lead, *shape), dtype, sharding=layout) for name, (shape, dtype) in f.items()
        }
        for kind, f in spec.items()
    }


def training(run: Run, image_size: Size | None = None) -> list[Program]:
    """The one program of a training step, see `abstract_batch`."""
    whole = mesh_lib.replicated(run.mesh)
    constants = run.data.plan.constant_tokens
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (
        run.abstract_state(),
        abstract_batch(run, image_size),
        jax.ShapeDtypeStruct(constants.shape, constants.dtype, sharding=whole),
        jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole),
    )
    return [Program("train_step", run.train_step, arguments, run.mesh)]


def ideal_seconds(run: Run) -> float | None:
    """Seconds that the products of a training step take at the peak of the mesh's chips; None for an unknown chip,
    and where images grow: the steps of a run then differ.

    Products that `model.remat` repeats count once. A large bank's products, which are computed twice, count twice.
    Traces the step once more.
    """
    chip = chips.chip_of(run.mesh.devices.flat[0].device_kind)
    if chip is None or run.config.data.growth:
        return None
    plain = run.config.copy_and_resolve_references()
    plain.model.remat = "none"
    (program,) = training(build(plain, mesh=run.mesh, data=run.data))
    flops = analytic_flops.count(program.trace().jaxpr)
    return timing.ideal_seconds(flops, dataclasses.asdict(chip), run.mesh.devices.size)


def embedding(run: Run) -> list[Program]:
    """Encodes one batch of images, and edits it under instructions of a full table."""
    mesh, model, variables = run.mesh, run.model, run.abstract_variables()
    embedder = run.embedding_model(variables)
    rows, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    size, length = model.config.image_size, model.config.max_length
    images = jax.ShapeDtypeStruct((embedder.batch_size, *size, 3), np.uint8, sharding=rows)
    tokens = jax.ShapeDtypeStruct((TABLE_ROWS, length), np.int32)
    index = jax.ShapeDtypeStruct((embedder.batch_size,), np.int32, sharding=whole)
    encode, sentences, edit, take = embedder.functions()
    with jax.set_mesh(mesh):
        features = _laid(jax.eval_shape(encode, variables, images), rows)
        table = _laid(jax.eval_shape(sentences, variables, tokens), whole)
        asked = _laid(jax.eval_shape(take, table, index), whole)
    return [
        Program("encode_images", encode, (variables, images), mesh),
        Program("edit", edit, (variables, features, asked), mesh),
    ]


def ranking(run: Run, gallery: int = RANKED_GALLERY) -> list[Program]:
    """Ranks one block of queries against a gallery: products, scores, ranks of one tile of positives, best images."""
    config, width = run.config, model_config(run.config).embedding_width
    line = Mesh(run.mesh.devices.reshape(-1), (device.AXIS,), axis_types=(AxisType.Auto,))
    layout = device.Layout.of(gallery, line.devices.size)
    columns = layout.width * layout.shards
    rows = config.evaluation.query_block or rank.default_block(rank.MOST_ROWS, layout.width)

    def array(shape: tuple[int, ...], dtype: Any, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(line, spec))

    scores = array((rows, columns), np.float32, P(None, device.AXIS))
    per_image = array((columns,), np.float32, P(device.AXIS))
    queries = array((rows, width), np.float32, P())
    of_gallery = array((columns, width), np.float32, P(device.AXIS))
    query_scale, images = array((rows,), np.float32, P()), array((), np.int32, P())
    wanted = array((rows, device.TILE), np.int32, P())
    laid = {"mesh": line, "layout": layout}
    return [
        Program("products", device.products, (queries, of_gallery, scores), line, {"mesh": line}),
        Program("to_scores", device.to_scores, (scores, query_scale, (per_image, per_image), images), line, laid),
        Program("count", device.count, (scores, wanted), line, laid),
        Program("top", device.top, (scores,), line, {**laid, "k": config.evaluation.top_k}),
    ]


def _laid(tree: Any, layout: NamedSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), tree)


_MAKERS: tuple[Callable[[Run], list[Program]], ...] = (training, embedding, ranking)
STEPS = dict(zip(COMPILED_STEPS, _MAKERS, strict=True))
"""The steps of a run. Each is one program or several, called one after the other."""
