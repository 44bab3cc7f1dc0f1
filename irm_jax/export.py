"""`python -m irm_jax.export`: the embedding function of a run as StableHLO, which needs neither this project nor flax.

The file holds the weights and runs on CPU, CUDA and TPU, with any number of rows:

    function = jax.export.deserialize(open(FILE, "rb").read())
    embedding = function.call(image, instruction)  # u8[B, H, W, 3], ids i32[B, L] or u8[B, h, w, 3] -> f32[B, 2D]

Rows have length 1. Images are of the model's size; sentences are the ids that `data_pipelines.tokenizer` makes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from absl import logging
from jax import export

from irm_jax.models.irm import IRM

PLATFORMS = ("cpu", "cuda", "tpu")
Kind = Literal["text", "image"]


def export_embedding(
    model: IRM, variables: Mapping[str, Any], kind: Kind, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """(image, instruction) -> embeddings of length 1, the weights within; `kind`: what the instruction is."""
    c = model.config

    def pair(own: IRM, image: jax.Array, instruction: jax.Array) -> jax.Array:
        encoded = (
            own.encode_sentences(instruction) if kind == "text" else own.encode_templates(instruction, c.max_length)
        )
        found = own.embed(own.encode_images(image), encoded).embedding
        return found / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-12)

    rows = export.symbolic_shape("b")[0]
    image = jax.ShapeDtypeStruct((rows, *c.image_size, 3), jnp.uint8)
    sentence = jax.ShapeDtypeStruct((rows, c.max_length), jnp.int32)
    template = jax.ShapeDtypeStruct((rows, *c.instruction_image_size, 3), jnp.uint8)
    function = jax.jit(lambda i, a: model.apply(variables, i, a, method=pair))
    return export.export(function, platforms=platforms)(image, sentence if kind == "text" else template)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    p = argparse.ArgumentParser("python -m irm_jax.export", description=__doc__.split("\n")[0])
    p.add_argument("--workdir", required=True, help="folder of a run; its newest checkpoint is exported")
    p.add_argument("--out", required=True, help="file to write")
    p.add_argument("--instruction", choices=("text", "image"), default="text", help="what the function reads beside it")
    options = p.parse_args(arguments)
    from irm_jax.checkpoint import CheckpointError
    from irm_jax.evaluate import Embedder

    try:
        import flatbuffers  # noqa: F401 (jax.export writes with it)

        embedder = Embedder(options.workdir)
    except (CheckpointError, ImportError) as error:
        logging.error("%s%s", error, "; pip install flatbuffers" if isinstance(error, ImportError) else "")
        return 2
    whole = jax.device_get(dict(embedder.variables))
    data = export_embedding(embedder.model, whole, options.instruction).serialize()
    Path(options.out).write_bytes(data)
    logging.info("%s: %.1f MiB, for %s", options.out, len(data) / 2**20, ", ".join(PLATFORMS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
