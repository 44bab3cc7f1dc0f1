"""Embeds images under instructions: each distinct instruction is encoded once, each image once for all instructions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data_pipelines.batches.image_batches import StoredImages, image_batches
from data_pipelines.batches.prefetch import ReadAhead
from data_pipelines.dataset.reader import Dataset
from data_pipelines.images import resize
from data_pipelines.instructions.tokenizer import Tokenizer
from irm_jax.models.encoders.features import ImageFeatures
from irm_jax.models.instruction_encoder import Instruction
from irm_jax.models.irm import IRM, Embedding, image_tokens
from irm_jax.parallel import mesh as mesh_lib

TABLE_ROWS = 1024
"""Most distinct instructions encoded at a time."""
Ask = str | np.ndarray
"""An instruction: a sentence, or an instruction image u8[h, w, 3] of any size."""


class EmbeddingModel:
    """A trained IRM as functions of host arrays. Rows are cut over the mesh; results come back whole on every host."""

    def __init__(self, model: IRM, variables: Mapping[str, Any], tokenizer: Tokenizer, mesh: Mesh, batch_size: int):
        self.model, self.mesh, self.tokenizer = model, mesh, tokenizer
        shards_of_rows = mesh_lib.row_shards(mesh)
        self.batch_size = -(-batch_size // shards_of_rows) * shards_of_rows
        self.variables = variables
        everywhere = mesh_lib.replicated(mesh)

        def method(name: str, **static: Any) -> Any:
            def apply(variables: Any, *arrays: Any) -> Any:
                return model.apply(variables, *arrays, *static.values(), method=name)

            return apply

        length = model.config.max_length
        self._images = jax.jit(method("encode_images"))
        self._sentences = jax.jit(method("encode_sentences"), out_shardings=everywhere)
        self._templates = jax.jit(method("encode_templates", length=length), out_shardings=everywhere)
        self._edit = jax.jit(method("embed"), out_shardings=everywhere)
        self._project_images = jax.jit(method("project_images"), out_shardings=everywhere)
        self._encode_and_project = jax.jit(method("encode_and_project_images"), out_shardings=everywhere)
        self._project_sentences = jax.jit(method("project_sentences"), out_shardings=everywhere)
        self._captions = jax.jit(method("encode_captions"), out_shardings=everywhere)
        self._match = jax.jit(method("match"), out_shardings=everywhere)
        self._take = jax.jit(lambda table, index: jax.tree.map(lambda x: jnp.take(x, index, axis=0), table))
        self._tokens = jax.jit(image_tokens, out_shardings=everywhere)
        self.between_batches: Callable[[], None] = lambda: None
        """Called with each batch of a split, in every process; may raise to leave the evaluation."""

    def functions(self) -> tuple[Any, Any, Any, Any]:
        """The jitted programs: images, sentences, editing (each takes the variables first), and rows of a table."""
        return self._images, self._sentences, self._edit, self._take

    def instructions(self, asks: Sequence[Ask]) -> Instruction:
        """Encodes distinct instructions -> device Instruction of at least len(asks) rows, in order."""
        sentence_at = [i for i, ask in enumerate(asks) if isinstance(ask, str)]
        image_at = [i for i, ask in enumerate(asks) if not isinstance(ask, str)]
        parts, order = [], np.zeros(len(asks), np.int32)
        start = 0
        if sentence_at:
            tokens = self.tokenizer.encode([str(asks[i]) for i in sentence_at])
            parts.append(self._call(self._sentences, _bucket(tokens)))
            order[sentence_at] = np.arange(len(sentence_at))
            start = parts[0].feature.shape[0]
        if image_at:
            size = self.model.config.instruction_image_size
            images = np.stack([resize(np.asarray(asks[i]), size) for i in image_at])
            parts.append(self._call(self._templates, _bucket(images)))
            order[image_at] = start + np.arange(len(image_at))
        table = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        return self._take(table, _bucket(order))

    def image_features(self, images: np.ndarray) -> ImageFeatures:
        """u8[batch_size, H, W, 3], or this host's rows of them -> features of the whole batch, cut over the mesh."""
        return self._call(self._images, self._rows(images))

    def edit(self, features: ImageFeatures, table: Instruction, index: np.ndarray) -> Embedding:
        """Features of B rows under instruction `index` i32[B] of `table` -> Embedding, host readable."""
        return self._call(self._edit, features, self._take(table, np.asarray(index, np.int32)))

    def project_images(self, features: ImageFeatures) -> np.ndarray:
        """-> f32[B, P], for the comparison with captions."""
        return np.asarray(self._call(self._project_images, features))

    def project_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """Distinct sentences are encoded once -> f32[n, P]."""
        distinct, inverse = np.unique(np.asarray(sentences, object).astype(str), return_inverse=True)
        pieces = []
        for start in range(0, len(distinct), TABLE_ROWS):
            part = [str(s) for s in distinct[start : start + TABLE_ROWS]]
            encoded = self.instructions(part)
            pieces.append(np.asarray(self._call(self._project_sentences, encoded))[: len(part)])
        return np.concatenate(pieces)[inverse]

    def image_tokens(self, features: ImageFeatures) -> np.ndarray:
        """-> f32[B, 1+N, D], what captions read of an image."""
        with jax.set_mesh(self.mesh):
            return np.asarray(self._tokens(features)).astype(np.float32)

    def caption_tokens(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """-> f32[n, L, D] and bool[n, L]: the tokens of captions, as `match` reads them, and which are no padding."""
        tokens, masks = [], []
        for start in range(0, len(sentences), TABLE_ROWS):
            part = self.tokenizer.encode(list(sentences[start : start + TABLE_ROWS]))
            encoded = self._call(self._captions, _bucket(part))
            tokens.append(np.asarray(encoded.tokens)[: len(part)].astype(np.float32))
            masks.append(np.asarray(encoded.mask)[: len(part)])
        return np.concatenate(tokens), np.concatenate(masks)

    def match(self, tokens: np.ndarray, mask: np.ndarray, images: np.ndarray) -> np.ndarray:
        """B captions (`caption_tokens`) with B images (`image_tokens`), B a multiple of the mesh -> logits f32[B]."""
        rows = mesh_lib.batch_sharding(self.mesh)
        return np.asarray(self._call(self._match, *(mesh_lib.distribute(x, rows) for x in (tokens, mask, images))))

    def embed(self, load: Callable[[int], np.ndarray], asks: Sequence[Ask]) -> np.ndarray:
        """Images load(0..n-1) (u8, any size) under asks[0..n-1] -> f32[n, 2D], rows of length 1."""
        distinct, remap = _distinct(asks)
        which = np.asarray(remap)
        whole_table = self.instructions(distinct) if len(distinct) <= TABLE_ROWS else None
        pieces = []
        for rows, kept, images in self._loaded(load, len(asks)):
            if whole_table is not None:
                table, local = whole_table, which[rows]
            else:
                used, local = np.unique(which[rows], return_inverse=True)
                table = self.instructions([distinct[i] for i in used])
            pieces.append(np.asarray(self.edit(self.image_features(images), table, local).embedding)[:kept])
        return of_length_one(np.concatenate(pieces))

    def project(self, load: Callable[[int], np.ndarray], count: int) -> np.ndarray:
        """Images load(0..count-1) (u8, any size) -> f32[count, P], rows of length 1, to compare with captions."""
        pieces = [
            np.asarray(self._call(self._encode_and_project, self._rows(images)))[:kept]
            for _, kept, images in self._loaded(load, count)
        ]
        return of_length_one(np.concatenate(pieces))

    def _loaded(self, load: Callable[[int], np.ndarray], count: int) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """(image numbers i[batch_size], how many of them are no padding, this host's images u8) of each batch."""
        size = self.model.config.image_size
        for start in range(0, count, self.batch_size):
            chunk = np.arange(start, min(start + self.batch_size, count))
            rows = np.resize(chunk, self.batch_size)
            here = rows[self.local_rows()]
            images = {i: resize(load(i), size) for i in np.unique(here).tolist()}
            yield rows, len(chunk), np.stack([images[i] for i in here.tolist()])

    def local_rows(self) -> list[int]:
        """The rows of a batch whose images this host has to read."""
        return mesh_lib.addressable_blocks(self.mesh, self.batch_size)

    def _rows(self, images: np.ndarray) -> jax.Array:
        return mesh_lib.to_global(images, mesh_lib.batch_sharding(self.mesh))

    def _call(self, function: Any, *arrays: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return function(self.variables, *arrays)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way of asking over a split: `asks` are distinct instructions, `index` i32[N] the one of each record;
    `grey` shows the model a grey picture instead of the person (the instruction-only control)."""

    name: str
    asks: Sequence[Ask]
    index: np.ndarray
    grey: bool = False


@dataclasses.dataclass(frozen=True)
class SplitFeatures:
    """`embedding`[variant] f32[N, 2D], `instruction`[variant] f32[N, D] (its features), `projection` f32[N, P].

    `tokens` f32[N, 1+N', D]: of the images, where captions are to read them.
    With mirrored images, `embedding`["own+flip"] and `projection_flip` are means over the image and its mirror.
    """

    embedding: dict[str, np.ndarray]
    instruction: dict[str, np.ndarray]
    projection: np.ndarray
    projection_flip: np.ndarray | None = None
    tokens: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: Sequence[SplitFeatures]) -> SplitFeatures:
        """The records of several splits one after the other."""
        if len(parts) == 1:
            return parts[0]
        tokens = [part.tokens for part in parts if part.tokens is not None]
        flips = [part.projection_flip for part in parts if part.projection_flip is not None]
        return cls(
            embedding={name: np.concatenate([p.embedding[name] for p in parts]) for name in parts[0].embedding},
            instruction={name: np.concatenate([p.instruction[name] for p in parts]) for name in parts[0].instruction},
            projection=np.concatenate([part.projection for part in parts]),
            projection_flip=np.concatenate(flips) if flips else None,
            tokens=np.concatenate(tokens) if tokens else None,
        )


def embed_split(
    embedder: EmbeddingModel,
    dataset: Dataset,
    split: str,
    variants: Sequence[Variant],
    *,
    workers: int,
    threads: int,
    flip: bool = False,
    tokens: bool = False,
) -> SplitFeatures:
    """Embeds all records of a split under every variant; each image is decoded and encoded once.

    `flip`: encoded a second time as its mirror, for the means of the variant "own" and of the projection. `tokens`: the
    images' tokens are kept.
    Raises ValueError naming data set, split, record and file for a picture that does not decode.
    """
    reader = dataset.reader(split, ("image", "file"))
    count = len(reader)
    grey = None
    if any(v.grey for v in variants):
        middle = np.full((embedder.batch_size, *embedder.model.config.image_size, 3), 128, np.uint8)
        grey = embedder.image_features(middle[embedder.local_rows()])
    names = [*(v.name for v in variants), *(["own+flip"] if flip else [])]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    instructions: dict[str, list[np.ndarray]] = {v.name: [] for v in variants}
    projections, projections_flip, kept_tokens = [], [], []
    ids_seen = []
    for segment in _segments(variants, count):
        table, local = _encode_segment(embedder, variants, segment)
        padded = np.resize(segment, -(-len(segment) // embedder.batch_size) * embedder.batch_size)
        mine = embedder.local_rows()
        here = padded.reshape(-1, embedder.batch_size)[:, mine].ravel()
        size, where = embedder.model.config.image_size, f"data set {dataset.name}, split {split}"
        ahead = ReadAhead(workers, threads)
        with image_batches(StoredImages(reader, where), here, size, len(mine), ahead) as batches:
            for number, (_, images) in enumerate(batches):
                embedder.between_batches()
                start = number * embedder.batch_size
                kept = min(embedder.batch_size, len(segment) - start)
                rows = padded[start : start + embedder.batch_size]
                features = embedder.image_features(images)
                ids_seen.append(rows[:kept])
                projections.append(embedder.project_images(features)[:kept])
                if tokens:
                    kept_tokens.append(embedder.image_tokens(features)[:kept])
                for variant in variants:
                    shown = grey if variant.grey and grey is not None else features
                    result = embedder.edit(shown, table, local[variant.name][rows])
                    parts[variant.name].append(np.asarray(result.embedding)[:kept])
                    instructions[variant.name].append(np.asarray(result.instruction)[:kept])
                if flip:
                    mirror = embedder.image_features(np.ascontiguousarray(images[:, :, ::-1]))
                    other = embedder.edit(mirror, table, local["own"][rows]).embedding
                    parts["own+flip"].append((parts["own"][-1] + np.asarray(other)[:kept]) / 2)
                    projections_flip.append((projections[-1] + embedder.project_images(mirror)[:kept]) / 2)
    order = np.argsort(np.concatenate(ids_seen), kind="stable")

    def joined(pieces: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(pieces)[order].astype(np.float32)

    return SplitFeatures(
        embedding={name: joined(pieces) for name, pieces in parts.items()},
        instruction={name: joined(pieces) for name, pieces in instructions.items()},
        projection=joined(projections),
        projection_flip=joined(projections_flip) if flip else None,
        tokens=joined(kept_tokens) if tokens else None,
    )


def _segments(variants: Sequence[Variant], count: int) -> Iterable[np.ndarray]:
    """Cuts the records into runs that share few enough distinct instructions to hold encoded at a time."""
    order = np.argsort(variants[0].index, kind="stable")
    if sum(len(v.asks) for v in variants) <= TABLE_ROWS:
        yield order
        return
    step = max(1, TABLE_ROWS // len(variants))  # at worst every record brings a new instruction for each variant
    for start in range(0, count, step):
        yield order[start : start + step]


def _encode_segment(
    embedder: EmbeddingModel, variants: Sequence[Variant], segment: np.ndarray
) -> tuple[Instruction, dict[str, np.ndarray]]:
    """The segment's distinct instructions encoded, and for each variant the row of the table by record."""
    asks: list[Ask] = []
    local = {}
    for variant in variants:
        used = np.unique(variant.index[segment])
        position = np.full(len(variant.asks), -1, np.int32)
        position[used] = len(asks) + np.arange(len(used))
        asks.extend(variant.asks[i] for i in used)
        local[variant.name] = position[variant.index]
    distinct, remap = _distinct(asks)
    return embedder.instructions(distinct), {
        name: np.where(index >= 0, np.asarray(remap)[np.maximum(index, 0)], 0) for name, index in local.items()
    }


def _distinct(asks: Sequence[Ask]) -> tuple[list[Ask], list[int]]:
    """Equal instructions of different variants become one row."""
    seen: dict[Any, int] = {}
    known: dict[int, int] = {}  # by object: one picture for all images is looked at once
    kept: list[Ask] = []
    for ask in asks:
        if id(ask) in known:
            continue
        key = ask if isinstance(ask, str) else (ask.shape, ask.tobytes())
        if key not in seen:
            seen[key] = len(kept)
            kept.append(ask)
        known[id(ask)] = seen[key]
    return kept, [known[id(ask)] for ask in asks]


def of_length_one(rows: np.ndarray) -> np.ndarray:
    """f32[n, d] -> the same rows, each divided by its length (zeros stay)."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _bucket(x: np.ndarray) -> np.ndarray:
    """Pads axis 0 with copies of its first row to a power of two, so that few shapes are compiled."""
    size = 16
    while size < len(x):
        size *= 2
    return np.concatenate([x, np.broadcast_to(x[:1], (size - len(x), *x.shape[1:]))])
