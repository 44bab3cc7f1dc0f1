"""`python -m irm_jax.export`: writes the embedding function of a run to a file that needs neither irm_jax nor flax.

The file holds the weights, takes any number of rows and returns embeddings of length 1. As StableHLO (the default) it
runs on CPU, CUDA and TPU:

    function = jax.export.deserialize(open(FILE, "rb").read())
    embedding = function.call(image, instruction)  # u8[B, H, W, 3], ids i32[B, L] or u8[B, h, w, 3] -> f32[B, 2D]

With `--format onnx` it runs wherever ONNX runs, computed in f32:

    session = onnxruntime.InferenceSession(FILE)
    (embedding,) = session.run(None, {"image": image, "instruction": instruction})

Images have the model's size; sentences are token ids of `data_pipelines.instructions.tokenizer`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import logging as python_logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from data_pipelines import commands
from irm_jax.config.command_line import folder
from irm_jax.embedder import Embedder
from irm_jax.errors import UserError
from irm_jax.models.irm import IRM
from irm_jax.models.plain_forms import plain_forms
from irm_jax.models.weight_files import single_layers

PLATFORMS = ("cpu", "cuda", "tpu")
Kind = Literal["text", "image"]
INPUTS, OUTPUT = ("image", "instruction"), "embedding"
MISSING = {
    "stablehlo": ("flatbuffers", "pip install -e '.[export]'"),
    "onnx": ("jax2onnx", "pip install -e '.[onnx]'"),
}
"""Format -> (package that writes it, command that installs the package)."""


def embedding_function(model: IRM, variables: Mapping[str, Any], kind: Kind) -> Callable[..., Any]:
    """Returns (image u8[B, H, W, 3], instruction) -> embeddings f32[B, 2D] of length 1, with the weights inside.

    `kind`: whether the instruction is token ids i32[B, L] or an image u8[B, h, w, 3].
    """
    length = model.config.max_length

    def pair(own: IRM, image: jax.Array, instruction: jax.Array) -> jax.Array:
        text = kind == "text"
        encoded = own.encode_sentences(instruction) if text else own.encode_templates(instruction, length)
        found = own.embed(own.encode_images(image), encoded).embedding
        return found / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-12)

    return lambda image, instruction: model.apply(variables, image, instruction, method=pair)


def _row_shapes(model: IRM, kind: Kind) -> list[tuple[tuple[int, ...], Any]]:
    """Shapes and dtypes of one image and of one instruction."""
    c = model.config
    instruction = ((c.max_length,), jnp.int32) if kind == "text" else ((*c.instruction_image_size, 3), jnp.uint8)
    return [((*c.image_size, 3), jnp.uint8), instruction]


def export_embedding(
    model: IRM, variables: Mapping[str, Any], kind: Kind, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """Exports the embedding function as StableHLO for `platforms`, for any number of rows."""
    rows = export.symbolic_shape("b")[0]
    shapes = [jax.ShapeDtypeStruct((rows, *shape), dtype) for shape, dtype in _row_shapes(model, kind)]
    return export.export(jax.jit(embedding_function(model, variables, kind)), platforms=platforms)(*shapes)


@dataclasses.dataclass(frozen=True)
class _Shape:
    """The type of an array for jax2onnx, which takes a name for a size that is not known."""

    shape: tuple[int | str, ...]
    dtype: Any


def export_onnx(model: IRM, variables: Mapping[str, Any], kind: Kind) -> Any:
    """Exports the embedding function as an `onnx.ModelProto`, for any number of rows and in f32.

    jax2onnx does not support a scan over layers, so scanned layers are unrolled. Raises ImportError without it (extra
    `onnx`).
    """
    with _quiet():
        from jax2onnx import to_onnx

        model = IRM(dataclasses.replace(model.config, dtype="float32", remat="none", scan_layers=False))
        params = unflatten_dict(single_layers(flatten_dict(variables["params"], sep="/")), sep="/")
        variables = {**variables, "params": params}
        shapes = [_Shape(("rows", *shape), dtype) for shape, dtype in _row_shapes(model, kind)]
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), plain_forms():
            return to_onnx(
                embedding_function(model, variables, kind), shapes, model_name="embedding", input_names=[*INPUTS],
                output_names=[OUTPUT],
            )  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences jax2onnx, which reports each layer and each library that it does not know."""
    loggers = [python_logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(python_logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    p = argparse.ArgumentParser("python -m irm_jax.export", description=__doc__.split("\n")[0])
    p.add_argument("--workdir", required=True, help="folder of a run; its newest checkpoint is exported")
    p.add_argument("--out", required=True, help="file to write")
    p.add_argument("--instruction", choices=("text", "image"), default="text", help="kind of instruction")
    p.add_argument("--format", choices=tuple(MISSING), default="stablehlo", help="what to write (see the README)")
    options = p.parse_args(arguments)
    package, cure = MISSING[options.format]
    try:
        __import__(package)
    except ImportError as error:
        logging.error("--format %s is written with %s: %s (%s)", options.format, package, cure, error)
        return 2
    try:
        workdir, out = (folder(getattr(options, name), f"--{name}") for name in ("workdir", "out"))
        out.parent.mkdir(parents=True, exist_ok=True)
        embedder = Embedder(workdir)
        whole = jax.device_get(dict(embedder.variables))
        if options.format == "onnx":
            data = export_onnx(embedder.model, whole, options.instruction).SerializeToString()
            where = "wherever ONNX runs"
        else:
            data = bytes(export_embedding(embedder.model, whole, options.instruction).serialize())
            where = ", ".join(PLATFORMS)
        out.write_bytes(data)
    except (UserError, OSError) as error:
        logging.error("%s", error)
        return 2
    print(f"{out}: {len(data) / 2**20:.1f} MiB, for {where}")
    return 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
