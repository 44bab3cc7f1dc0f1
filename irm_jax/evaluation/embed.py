"""The trained model as functions of host arrays: images under instructions, captions, pairs of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Float32, Int, Int32

from data_pipelines.images import resize
from data_pipelines.instructions import unknown_words
from data_pipelines.instructions.tokenizer import Tokenizer
from irm_jax.errors import UserError
from irm_jax.models.encoders.features import ImageFeatures
from irm_jax.models.instruction_encoder import Instruction as EncodedInstruction
from irm_jax.models.irm import IRM, Embedding, image_tokens
from irm_jax.parallel import mesh as mesh_lib

TABLE_ROWS, LEAST_TABLE = 1024, 16
"""Most distinct instructions that are encoded at a time, and to how many fewer ones are padded."""
Instruction = str | np.ndarray
"""A sentence, or an instruction image u8[h,w,3] of any size."""


class NotFiniteError(UserError, ValueError):
    """Reports embeddings that are no numbers, of a checkpoint that diverged."""


class EmbeddingModel:
    """A trained IRM as functions of host arrays. Rows are cut over the mesh; results come back whole on every host.

    `batch_size`: images embedded at a time, rounded up to a multiple of the mesh. `sizes`: smaller numbers of rows for
    which programs are compiled too, so that one query is not padded to a whole batch.
    """

    def __init__(
        self, model: IRM, variables: Mapping[str, Any], tokenizer: Tokenizer, mesh: Mesh, batch_size: int,
        sizes: Sequence[int] = (),
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.model, self.mesh, self.tokenizer = model, mesh, tokenizer
        shards_of_rows = mesh_lib.row_shards(mesh)
        self.batch_size = -(-batch_size // shards_of_rows) * shards_of_rows
        rounded = {-(-size // shards_of_rows) * shards_of_rows for size in sizes}
        self.sizes = tuple(sorted(size for size in rounded if size < self.batch_size))
        self.least_table = 1 if sizes else LEAST_TABLE
        self.variables = variables
        replicated = mesh_lib.replicated(mesh)

        def method(name: str, **static: Any) -> Any:
            def apply(variables: Any, *arrays: Any) -> Any:
                return model.apply(variables, *arrays, *static.values(), method=name)

            return apply

        length = model.config.max_length
        self._images = jax.jit(method("encode_images"))
        self._sentences = jax.jit(method("encode_sentences"), out_shardings=replicated)
        self._templates = jax.jit(method("encode_templates", length=length), out_shardings=replicated)
        self._edit = jax.jit(method("embed"), out_shardings=replicated)
        self._project_images = jax.jit(method("project_images"), out_shardings=replicated)
        self._encode_and_project = jax.jit(method("encode_and_project_images"), out_shardings=replicated)
        self._project_sentences = jax.jit(method("project_sentences"), out_shardings=replicated)
        self._captions = jax.jit(method("encode_captions"), out_shardings=replicated)
        self._match = jax.jit(method("match"), out_shardings=replicated)
        self._take = jax.jit(rows_at)
        self._take_rows = jax.jit(rows_at, out_shardings=mesh_lib.batch_sharding(mesh))
        self._tokens = jax.jit(image_tokens, out_shardings=replicated)
        self.between_batches: Callable[[], None] = lambda: None
        """Called before each batch of a split, in every process; may raise to leave the evaluation."""

    def functions(self) -> tuple[Any, Any, Any, Any]:
        """The jitted programs: images, sentences, editing (each takes the variables first), and rows of a table."""
        return self._images, self._sentences, self._edit, self._take

    def tokens(self, sentences: Sequence[str]) -> Int32[np.ndarray, "n L"]:
        """Token ids of sentences. Raises UnknownWordsError for one without a word that the vocabulary knows."""
        unknown_words.check(self.tokenizer, sentences)
        return self.tokenizer.encode(sentences)

    def instructions(self, instructions: Sequence[Instruction]) -> EncodedInstruction:
        """Encodes distinct instructions; the result has at least len(instructions) rows on the devices, in order."""
        sentence_at = [i for i, instruction in enumerate(instructions) if isinstance(instruction, str)]
        image_at = [i for i, instruction in enumerate(instructions) if not isinstance(instruction, str)]
        parts, order = [], np.zeros(len(instructions), np.int32)
        start = 0
        if sentence_at:
            tokens = self.tokens([str(instructions[i]) for i in sentence_at])
            parts.append(self._call(self._sentences, self._bucket(tokens)))
            order[sentence_at] = np.arange(len(sentence_at))
            start = parts[0].feature.shape[0]
        if image_at:
            size = self.model.config.instruction_image_size
            images = np.stack([resize(np.asarray(instructions[i]), size) for i in image_at])
            parts.append(self._call(self._templates, self._bucket(images)))
            order[image_at] = start + np.arange(len(image_at))
        if len(parts) == 1:  # in order already
            return parts[0]
        table = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        return self._take(table, self._bucket(order))

    def image_features(self, images: np.ndarray) -> ImageFeatures:
        """Encodes a batch of images, cut over the mesh; `images` u8[n,H,W,3] are this host's `local_rows` of it."""
        return self._call(self._images, self._rows(images))

    def edit(self, features: ImageFeatures, table: EncodedInstruction, index: Int[np.ndarray, " B"]) -> Embedding:
        """Embeds B images, each under the instruction `index` of the table; whole on every host."""
        return self._call(self._edit, features, self._take(table, np.asarray(index, np.int32)))

    def edit_pairs(
        self, features: ImageFeatures, rows: Int[np.ndarray, " n"], table: EncodedInstruction,
        index: Int[np.ndarray, " n"],
    ) -> Float[np.ndarray, "n D2"]:  # fmt: skip
        """Embeds n pairs of an image of a batch (`rows`) and an instruction of the table (`index`)."""
        pieces = []
        for start in range(0, len(rows), self.batch_size):
            chunk = slice(start, min(start + self.batch_size, len(rows)))
            row, which = (np.resize(x[chunk], self.batch_size).astype(np.int32) for x in (rows, index))
            pieces.append(np.asarray(self.edit(self._take_rows(features, row), table, which).embedding))
            pieces[-1] = pieces[-1][: chunk.stop - start]
        return np.concatenate(pieces)

    def project_images(self, features: ImageFeatures) -> Float[np.ndarray, "B P"]:
        """Image features as captions are compared with them."""
        return np.asarray(self._call(self._project_images, features))

    def project_sentences(self, sentences: Sequence[str]) -> Float[np.ndarray, "n P"]:
        """Captions as images are compared with them; each distinct sentence is encoded once."""
        distinct, inverse = np.unique(np.asarray(sentences, object).astype(str), return_inverse=True)
        pieces = []
        for start in range(0, len(distinct), TABLE_ROWS):
            part = [str(s) for s in distinct[start : start + TABLE_ROWS]]
            encoded = self.instructions(part)
            pieces.append(np.asarray(self._call(self._project_sentences, encoded))[: len(part)])
        return finite(np.concatenate(pieces))[inverse]

    def image_tokens(self, features: ImageFeatures) -> Float32[np.ndarray, "B N D"]:
        """The tokens of images that captions read in `match`: the class token, then the patches."""
        with jax.set_mesh(self.mesh):
            return np.asarray(self._tokens(features)).astype(np.float32)

    def caption_tokens(self, sentences: Sequence[str]) -> tuple[Float32[np.ndarray, "n L D"], Bool[np.ndarray, "n L"]]:
        """The tokens of captions that `match` reads, and which of them are no padding."""
        tokens, masks = [], []
        for start in range(0, len(sentences), TABLE_ROWS):
            part = self.tokens(list(sentences[start : start + TABLE_ROWS]))
            encoded = self._call(self._captions, self._bucket(part))
            tokens.append(np.asarray(encoded.tokens)[: len(part)].astype(np.float32))
            masks.append(np.asarray(encoded.mask)[: len(part)])
        return np.concatenate(tokens), np.concatenate(masks)

    def match(self, tokens: np.ndarray, mask: np.ndarray, images: np.ndarray) -> Float[np.ndarray, " B"]:
        """Logits of B captions (`caption_tokens`) with B images (`image_tokens`); B is a multiple of the mesh."""
        rows = mesh_lib.batch_sharding(self.mesh)
        return np.asarray(self._call(self._match, *(mesh_lib.distribute(x, rows) for x in (tokens, mask, images))))

    def embed(
        self, load: Callable[[int], np.ndarray], instructions: Sequence[Instruction]
    ) -> Float[np.ndarray, "n D2"]:
        """Embeds the images load(0..n-1) (u8[H,W,3], any size), each under its instruction; rows of length 1."""
        distinct, remap = distinct_instructions(instructions)
        which = np.asarray(remap)
        whole_table = self.instructions(distinct) if len(distinct) <= TABLE_ROWS else None
        pieces = []
        for rows, kept, images in self.batches(load, len(instructions)):
            if whole_table is not None:
                table, local = whole_table, which[rows]
            else:
                used, local = np.unique(which[rows], return_inverse=True)
                table = self.instructions([distinct[i] for i in used])
            pieces.append(np.asarray(self.edit(self.image_features(images), table, local).embedding)[:kept])
        return of_length_one(finite(np.concatenate(pieces)))

    def project(self, load: Callable[[int], np.ndarray], count: int) -> Float[np.ndarray, "count P"]:
        """Projects the images load(0..count-1) (u8[H,W,3], any size) for captions; rows of length 1."""
        pieces = [
            np.asarray(self._call(self._encode_and_project, self._rows(images)))[:kept]
            for _, kept, images in self.batches(load, count)
        ]
        return of_length_one(finite(np.concatenate(pieces)))

    def batches(self, load: Callable[[int], np.ndarray], count: int) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """Yields per batch: image numbers i[rows], how many are no padding, this host's images u8[n,H,W,3]."""
        size = self.model.config.image_size
        for start in range(0, count, self.batch_size):
            chunk = np.arange(start, min(start + self.batch_size, count))
            padded = next((size for size in self.sizes if size >= len(chunk)), self.batch_size)
            rows = np.resize(chunk, padded)
            here = rows[mesh_lib.addressable_blocks(self.mesh, padded)]
            images = {i: resize(load(i), size) for i in np.unique(here).tolist()}
            yield rows, len(chunk), np.stack([images[i] for i in here.tolist()])

    def _bucket(self, x: np.ndarray) -> np.ndarray:
        """Pads axis 0 with copies of its first row to a power of two (of four below 16), so that few shapes compile."""
        size = self.least_table
        while size < len(x):
            size *= 2 if size >= LEAST_TABLE else 4
        return np.concatenate([x, np.broadcast_to(x[:1], (size - len(x), *x.shape[1:]))])

    def local_rows(self) -> list[int]:
        """The rows of a batch whose images this host has to read."""
        return mesh_lib.addressable_blocks(self.mesh, self.batch_size)

    def _rows(self, images: np.ndarray) -> jax.Array:
        return mesh_lib.to_global(images, mesh_lib.batch_sharding(self.mesh))

    def _call(self, function: Any, *arrays: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return function(self.variables, *arrays)


def rows_at(table: Any, index: jax.Array) -> Any:
    """Some rows of each array of a tree."""
    return jax.tree.map(lambda x: jnp.take(x, index, axis=0), table)


def distinct_instructions(instructions: Sequence[Instruction]) -> tuple[list[Instruction], list[int]]:
    """The distinct instructions, and for each given one its place among them."""
    seen: dict[Any, int] = {}
    known: dict[int, int] = {}  # by object: one picture for all images is looked at once
    kept: list[Instruction] = []
    for instruction in instructions:
        if id(instruction) in known:
            continue
        key = instruction if isinstance(instruction, str) else (instruction.shape, instruction.tobytes())
        if key not in seen:
            seen[key] = len(kept)
            kept.append(instruction)
        known[id(instruction)] = seen[key]
    return kept, [known[id(instruction)] for instruction in instructions]


def of_length_one(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The same rows, each divided by its length (zeros stay)."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def finite(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The rows. Raises NotFiniteError for NaN or infinity in them."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise NotFiniteError(
            f"{len(bad)} of {len(rows)} embeddings hold NaN or infinity, row {bad[0]} first: the training of this "
            "checkpoint diverged, or its files are damaged. Take an earlier checkpoint"
        )
    return rows
