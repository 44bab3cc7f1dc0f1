"""The functions of a trained model, with its weights inside, as StableHLO and ONNX.

They take any number of rows and return rows of length 1. StableHLO runs on CPU, CUDA and TPU:

    function = jax.export.deserialize(open(FILE, "rb").read())
    embedding = function.call(image, instruction)  # u8[B, H, W, 3], ids i32[B, L] or u8[B, h, w, 3] -> f32[B, 2D]

ONNX runs wherever ONNX Runtime does, computed in f32:

    session = onnxruntime.InferenceSession(FILE)
    (embedding,) = session.run(None, {"image": image, "instruction": instruction})

Pictures have the model's size; sentences are token ids (`prepare`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import logging as python_logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from irm_jax.config.keys import EXPORT_FORMATS
from irm_jax.errors import UserError, pip_line
from irm_jax.models.config import IRMConfig
from irm_jax.models.irm import IRM
from irm_jax.models.plain_forms import plain_forms
from irm_jax.models.weight_files import single_layers

PLATFORMS = ("cpu", "cuda", "tpu")
NEEDS = {
    "stablehlo": (("flatbuffers",), pip_line("export")),
    "onnx": (("jax2onnx", "onnxruntime"), pip_line("onnx")),
}
"""Format -> (packages that write and run it, command that installs them)."""


class ExportError(UserError):
    """A model cannot be exported; the message names the cause and the cure."""


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of the model: its name, its inputs as (name, kind), the name of its output, and what it is for.

    Kinds of input are image u8[B, H, W, 3], sentence (ids i32[B, L]) and picture u8[B, h, w, 3] (an instruction).
    """

    name: str
    inputs: tuple[tuple[str, str], ...]
    output: str
    says: str


_IMAGE = ("image", "image")
FUNCTIONS = {
    one.name: one
    for one in (
        Function("embed_sentence", (_IMAGE, ("instruction", "sentence")), "embedding", "an image under a sentence"),
        Function("embed_picture", (_IMAGE, ("instruction", "picture")), "embedding", "an image under a picture"),
        Function("search_sentence", (("sentence", "sentence"),), "projection", "a description"),
        Function("search_image", (_IMAGE,), "projection", "an image, for search_sentence"),
    )
}  # fmt: skip


def require(formats: Sequence[str]) -> None:
    """Raises ExportError for a format whose packages are missing, with the command that installs them."""
    for name in formats:
        packages, cure = NEEDS[name]
        if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
            others = [other for other in EXPORT_FORMATS if other != name]
            raise ExportError(
                f"the format {name} needs {' and '.join(missing)}, not installed here: {cure}, or export "
                f"{', '.join(others)} alone"
            )


def function_of(model: IRM, variables: Mapping[str, Any], name: str) -> Callable[..., Any]:
    """Returns a function of FUNCTIONS, from its inputs to rows f32[B, d] of length 1, with the weights inside."""
    length = model.config.max_length

    def embed(own: IRM, image: jax.Array, instruction: jax.Array) -> jax.Array:
        sentence = name == "embed_sentence"
        encoded = own.encode_sentences(instruction) if sentence else own.encode_templates(instruction, length)
        return own.embed(own.encode_images(image), encoded).embedding

    def project(own: IRM, given: jax.Array) -> jax.Array:
        if name == "search_sentence":
            return own.project_sentences(own.encode_sentences(given))
        return own.encode_and_project_images(given)

    def of_length_one(own: IRM, *inputs: jax.Array) -> jax.Array:
        found = (embed if name.startswith("embed") else project)(own, *inputs)
        return found / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-12)

    return lambda *inputs: model.apply(variables, *inputs, method=of_length_one)


def row_shapes(config: IRMConfig, name: str) -> list[tuple[tuple[int, ...], Any]]:
    """Returns the shape and dtype of one row of each input."""
    shapes = {
        "image": ((*config.image_size, 3), np.uint8),
        "sentence": ((config.max_length,), np.int32),
        "picture": ((*config.instruction_image_size, 3), np.uint8),
    }
    return [shapes[kind] for _, kind in FUNCTIONS[name].inputs]


def export_stablehlo(
    model: IRM, variables: Mapping[str, Any], name: str, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """Exports a function as StableHLO for `platforms`, for any number of rows."""
    rows = export.symbolic_shape("b")[0]
    shapes = [jax.ShapeDtypeStruct((rows, *shape), dtype) for shape, dtype in row_shapes(model.config, name)]
    return export.export(jax.jit(function_of(model, variables, name)), platforms=platforms)(*shapes)


@dataclasses.dataclass(frozen=True)
class _Shape:
    """The type of an array for jax2onnx, which takes a name for a size that is not known."""

    shape: tuple[int | str, ...]
    dtype: Any


def export_onnx(model: IRM, variables: Mapping[str, Any], name: str) -> Any:
    """Exports a function as an `onnx.ModelProto`, for any number of rows and in f32.

    jax2onnx does not support a scan over layers, so scanned layers are unrolled. Raises ImportError without it (extra
    `onnx`).
    """
    with _quiet():
        from jax2onnx import to_onnx

        model = IRM(dataclasses.replace(model.config, dtype="float32", remat="none", scan_layers=False))
        params = unflatten_dict(single_layers(flatten_dict(variables["params"], sep="/")), sep="/")
        variables = {**variables, "params": params}
        shapes = [_Shape(("rows", *shape), dtype) for shape, dtype in row_shapes(model.config, name)]
        described = FUNCTIONS[name]
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), plain_forms():
            return to_onnx(
                function_of(model, variables, name), shapes, model_name=name,
                input_names=[own for own, _ in described.inputs], output_names=[described.output],
            )  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences jax2onnx, which reports each layer and each library that it does not know."""
    before = python_logging.root.manager.disable
    python_logging.disable(python_logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        python_logging.disable(before)


def serialized(format_: str, model: IRM, variables: Mapping[str, Any], name: str) -> bytes:
    """Returns the bytes of a function's file in a format."""
    if format_ == "onnx":
        return bytes(export_onnx(model, variables, name).SerializeToString())
    return bytes(export_stablehlo(model, variables, name).serialize())


def loaded(format_: str, data: bytes, name: str) -> Callable[..., np.ndarray]:
    """Returns the function of a file's bytes, as its user has it: arrays in, rows f32[B, d] out."""
    if format_ == "stablehlo":
        function = export.deserialize(bytearray(data))
        return lambda *inputs: np.asarray(function.call(*inputs))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [own for own, _ in FUNCTIONS[name].inputs]
    return lambda *inputs: np.asarray(session.run(None, dict(zip(names, inputs, strict=True)))[0])
