"""Embeds a test set once, under every instruction that its figures and controls need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int32

from data_pipelines.batches.image_batches import StoredImages, image_batches
from data_pipelines.batches.prefetch import ReadAhead
from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax.evaluation import embed
from irm_jax.evaluation.embed import EmbeddingModel, Instruction, distinct_instructions, of_length_one
from irm_jax.evaluation.ranking.rescore import CaptionMatcher, InstructedMatcher
from irm_jax.evaluation.test_sets import SplitData, TestSet
from irm_jax.models.encoders.features import ImageFeatures
from irm_jax.models.instruction_encoder import Instruction as EncodedInstruction

Matcher = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Scores f32[P] of pairs of queries i[P] and gallery images i[P]."""
OWN, NEUTRAL, GREY, SWAPPED = "own", "neutral", "grey", "swapped"
FLIP = "own+flip"
"""The variant OWN averaged over each image and its mirror."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One embedding of a split's N images: record i under `instructions[index[i]]`.

    grey: the model sees a grey image instead of the person (the instruction-only control).
    """

    name: str
    instructions: Sequence[Instruction]
    index: Int32[np.ndarray, " N"]
    grey: bool = False

    @classmethod
    def own(cls, split: SplitData, name: str = OWN, *, grey: bool = False) -> Variant:
        """Each record under its own instruction."""
        return cls(name, split.instructions, split.instruction_index, grey)

    @classmethod
    def constant(cls, split: SplitData, name: str, sentence: str) -> Variant:
        """All records under one sentence."""
        return cls(name, [sentence], np.zeros(len(split), np.int32))


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """What is embedded of a test set, and how its images are read.

    neutral: the variant NEUTRAL. controls: NEUTRAL and GREY, for which `grey` is a batch of grey images encoded.
    flip: FLIP, and the projection's mean over image and mirror.
    judged: `SetFeatures.matcher` is there: for captions the matching head, for images the model under the query's
    instruction (whose ranking also needs NEUTRAL).
    instruction: also keep the features of the records' own instructions, which mAP_tau by model similarity reads.
    workers, threads: see `ReadAhead`.
    """

    neutral: bool = False
    controls: bool = False
    flip: bool = False
    judged: bool = False
    workers: int = 0
    threads: int = 2
    instruction: bool = False
    grey: ImageFeatures | None = None


@dataclasses.dataclass(frozen=True)
class SplitFeatures:
    """Features of N records.

    embedding: by variant. instruction: of OWN, the feature of the instruction itself, where it was asked for.
    projection: as captions compare images; projection_flip: its mean over image and mirror.
    """

    embedding: dict[str, Float32[np.ndarray, "N D2"]]
    instruction: dict[str, Float32[np.ndarray, "N D"]]
    projection: Float[np.ndarray, "N P"]
    projection_flip: Float[np.ndarray, "N P"] | None = None

    @classmethod
    def concat(cls, parts: Sequence[SplitFeatures]) -> SplitFeatures:
        """The records of several splits, one split after the other."""
        if len(parts) == 1:
            return parts[0]
        flips = [part.projection_flip for part in parts if part.projection_flip is not None]
        return cls(
            embedding={name: np.concatenate([p.embedding[name] for p in parts]) for name in parts[0].embedding},
            instruction={name: np.concatenate([p.instruction[name] for p in parts]) for name in parts[0].instruction},
            projection=np.concatenate([part.projection for part in parts]),
            projection_flip=np.concatenate(flips) if flips else None,
        )


@dataclasses.dataclass(frozen=True)
class SetFeatures:
    """Features of a test set's queries and of the gallery records of all its parts.

    caption: queries are captions, which are compared with the images' projections.
    swaps: i32[Q], see `controls.swapped_instruction`. matcher: judges pairs of queries and images again, if asked for.
    """

    caption: bool
    query: SplitFeatures
    gallery: SplitFeatures
    swaps: np.ndarray | None = None
    matcher: Matcher | None = None

    def of_queries(self, variant: str) -> Float[np.ndarray, "Q d"]:
        """Embeddings of the queries under an instruction variant (captions: projections)."""
        return self.query.projection if self.caption else self.query.embedding[variant]

    def of_gallery(self, variant: str, *, by_caption: bool) -> Float[np.ndarray, "G d"]:
        """Embeddings of the gallery, as captions compare them (the projection) or as images do."""
        if not by_caption:
            return self.gallery.embedding[variant]
        flipped = self.gallery.projection_flip if variant == FLIP else None
        return self.gallery.projection if flipped is None else flipped

    def pair(self, query: str, gallery: str) -> tuple[np.ndarray, np.ndarray]:
        """Both sides of the set's own comparison, under the named variants."""
        return self.of_queries(query), self.of_gallery(gallery, by_caption=self.caption)


def grey_features(embedder: EmbeddingModel) -> ImageFeatures:
    """Encodes a batch of grey images, which the variant GREY of every split shows to the model."""
    middle = np.full((embedder.batch_size, *embedder.model.config.image_size, 3), 128, np.uint8)
    return embedder.image_features(middle[embedder.local_rows()])


def embed_set(
    embedder: EmbeddingModel, test: TestSet, options: EmbedOptions, swaps: np.ndarray | None = None
) -> SetFeatures:
    """Embeds queries and gallery; a split that is both, under the same instructions, is embedded once.

    `swaps`: i32[Q], the gallery record whose instruction each query also gets (SWAPPED), -1 for none.
    """
    caption = test.task.kind == "caption"

    def embedded(split: SplitData, *more: Variant) -> SplitFeatures:
        variants = [Variant.own(split)]
        if options.neutral or options.controls:
            variants.append(Variant.constant(split, NEUTRAL, NEUTRAL_SENTENCE))
        if options.controls and not caption:
            variants.append(Variant.own(split, GREY, grey=True))
        return embed_split(embedder, split, [*variants, *more], options)

    gallery = SplitFeatures.concat([embedded(part) for part in test.parts])
    if test.one_split and len(test.parts) == 1:
        return _judged(embedder, test, SetFeatures(caption, gallery, gallery), options)
    if caption:
        captions = [str(test.query.instruction(record)) for record in range(len(test.query))]
        query = SplitFeatures({}, {}, embedder.project_sentences(captions))
        encoded = _EncodedGallery(embedder, test, options)
        matcher = CaptionMatcher(embedder, captions, encoded.count, encoded.batches) if options.judged else None
        return SetFeatures(caption, query, gallery, matcher=matcher)
    if swaps is None:
        return _judged(embedder, test, SetFeatures(caption, embedded(test.query), gallery), options)
    index = np.where(swaps >= 0, test.gallery.instruction_index[np.maximum(swaps, 0)], 0).astype(np.int32)
    query = embedded(test.query, Variant(SWAPPED, test.gallery.instructions, index))
    return _judged(embedder, test, SetFeatures(caption, query, gallery, swaps), options)


def _judged(embedder: EmbeddingModel, test: TestSet, features: SetFeatures, options: EmbedOptions) -> SetFeatures:
    """The features with a matcher of query images and gallery images under the query's instruction, if asked for."""
    if not options.judged:
        return features
    query = features.query.embedding[OWN]
    first = test.query.instructions[0]
    every = (one for split in (test.query, *test.parts) for one in split.instructions)
    if all(isinstance(one, str) and one == first for one in every):  # the gallery is embedded so already
        return dataclasses.replace(features, matcher=_cosines(query, features.gallery.embedding[OWN]))

    encoded, own = _EncodedGallery(embedder, test, options), (test.query.instructions, test.query.instruction_index)
    return dataclasses.replace(
        features, matcher=InstructedMatcher(embedder, query, own, encoded.count, encoded.batches)
    )


@dataclasses.dataclass(frozen=True)
class _EncodedGallery:
    """The gallery of a test set, all parts, encoded anew batch by batch: features of a whole gallery are never held."""

    embedder: EmbeddingModel
    test: TestSet
    options: EmbedOptions

    @property
    def count(self) -> int:
        return len(self.test.gallery_records)

    def batches(self, images: np.ndarray) -> Iterator[tuple[np.ndarray, ImageFeatures]]:
        """Yields numbers of `images` i[n], ascending, and the features of a batch, of which the first n are theirs."""
        start = 0
        for part in self.test.parts:
            records = images[(images >= start) & (images < start + len(part))] - start
            for chosen, kept, pictures in read_batches(self.embedder, part, records, self.options):
                yield chosen[:kept] + start, self.embedder.image_features(pictures)
            start += len(part)


def _cosines(query: np.ndarray, gallery: np.ndarray) -> Matcher:
    """Judges pairs by the cosine of embeddings."""
    left, right = of_length_one(query), of_length_one(gallery)
    return lambda queries, images: np.einsum("pd,pd->p", left[queries], right[images])


def embed_split(
    embedder: EmbeddingModel, split: SplitData, variants: Sequence[Variant], options: EmbedOptions
) -> SplitFeatures:
    """Embeds all records of a split under every variant (one of them OWN for flips); each image is decoded and encoded
    once.

    Raises DatasetError naming data set, split, record and file for a picture that does not decode.
    """
    return _SplitEmbedding(embedder, split, variants, options).run()


def read_batches(
    embedder: EmbeddingModel, split: SplitData, records: np.ndarray, options: EmbedOptions
) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """Yields batches of some images of a split: records i[B], how many are no padding, this host's images."""
    if not len(records):
        return
    size, rows = embedder.batch_size, embedder.local_rows()
    padded = np.resize(records, -(-len(records) // size) * size)
    reader = split.dataset.reader(split.split, ("image", "file"))
    where = f"data set {split.dataset.name}, split {split.split}"
    images_of = StoredImages(reader, where, max_pixels=split.dataset.max_pixels)
    ahead = ReadAhead(options.workers, options.threads)
    wanted = padded.reshape(-1, size)[:, rows].ravel()
    with image_batches(images_of, wanted, embedder.model.config.image_size, len(rows), ahead) as batches:
        for number, (_, images) in enumerate(batches):
            embedder.between_batches()
            start = number * size
            yield padded[start : start + size], min(size, len(records) - start), images


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows by record: `index` names the table row of a record, `rows` holds a row for each table row in `used`.

    `used` is ascending.
    """

    rows: np.ndarray
    used: np.ndarray
    index: np.ndarray

    def __getitem__(self, records: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.rows[np.searchsorted(self.used, self.index[records])]
        return found


class _SplitEmbedding:
    """A split in the making: pieces of its features, by kind and variant, in the order of `ids`."""

    def __init__(
        self, embedder: EmbeddingModel, split: SplitData, variants: Sequence[Variant], options: EmbedOptions
    ) -> None:
        self.embedder, self.split, self.variants, self.options = embedder, split, variants, options
        self.pieces: dict[tuple[str, str], list[np.ndarray]] = {}
        self.ids: list[np.ndarray] = []

    def run(self) -> SplitFeatures:
        for segment in _segments(self.variants, len(self.split)):
            self._embed_segment(segment)
        order = np.argsort(np.concatenate(self.ids), kind="stable")

        def joined(kind: str, name: str = "") -> np.ndarray:
            return np.concatenate(self.pieces[kind, name])[order].astype(np.float32)

        names = [variant.name for variant in self.variants]
        flip = self.options.flip
        return SplitFeatures(
            embedding={name: joined("embedding", name) for name in [*names, *([FLIP] if flip else [])]},
            instruction={OWN: joined("instruction", OWN)} if ("instruction", OWN) in self.pieces else {},
            projection=joined("projection"),
            projection_flip=joined("projection", FLIP) if flip else None,
        )

    def _embed_segment(self, segment: np.ndarray) -> None:
        """Embeds the records i[n], whose instructions are encoded together."""
        table, local = _encode_segment(self.embedder, self.variants, segment)
        grey = {v.name: self._grey_rows(table, local[v.name], segment) for v in self.variants if v.grey}
        for records, kept, images in read_batches(self.embedder, self.split, segment, self.options):
            self.ids.append(records[:kept])
            for name, rows_of in grey.items():
                self.pieces.setdefault(("embedding", name), []).append(rows_of[records[:kept]])
            self._embed_batch(images, table, {name: index[records] for name, index in local.items()}, kept)

    def _grey_rows(self, table: EncodedInstruction, index: np.ndarray, segment: np.ndarray) -> _Rows:
        """Embeddings of the grey image by record; each distinct row of the table is computed once."""
        assert self.options.grey is not None
        used, size = np.unique(index[segment]), self.embedder.batch_size
        pieces = []
        for start in range(0, len(used), size):
            part = used[start : start + size]
            found = self.embedder.edit(self.options.grey, table, np.resize(part, size)).embedding
            pieces.append(np.asarray(found)[: len(part)])
        return _Rows(np.concatenate(pieces), used, index)

    def _embed_batch(
        self, images: np.ndarray, table: EncodedInstruction, index: dict[str, np.ndarray], kept: int
    ) -> None:
        """Embeds a batch under every variant, `index` its rows of the table; the first `kept` images are no padding."""
        embedder = self.embedder

        def keep(kind: str, name: str, rows: np.ndarray) -> np.ndarray:
            self.pieces.setdefault((kind, name), []).append(rows)
            return rows

        features = embedder.image_features(images)
        projection = keep("projection", "", embedder.project_images(features)[:kept])
        own, done = None, dict[bytes, Any]()
        for variant in self.variants:
            if variant.grey:
                continue
            same = index[variant.name].tobytes()  # a gallery's own instruction may be the neutral one
            if same not in done:
                done[same] = embedder.edit(features, table, index[variant.name])
            result = done[same]
            embedding = keep("embedding", variant.name, np.asarray(result.embedding)[:kept])
            if self.options.instruction and variant.name == OWN:
                keep("instruction", OWN, np.asarray(result.instruction)[:kept])
            own = embedding if variant.name == OWN else own
        if self.options.flip:
            mirror = embedder.image_features(np.ascontiguousarray(images[:, :, ::-1]))
            other = embedder.edit(mirror, table, index[OWN]).embedding
            keep("embedding", FLIP, (own + np.asarray(other)[:kept]) / 2)
            keep("projection", FLIP, (projection + embedder.project_images(mirror)[:kept]) / 2)


def _segments(variants: Sequence[Variant], count: int) -> Iterable[np.ndarray]:
    """Cuts the records into runs that share few enough distinct instructions to hold encoded at a time."""
    order = np.argsort(variants[0].index, kind="stable")
    if sum(len(variant.instructions) for variant in variants) <= embed.TABLE_ROWS:
        yield order
        return
    step = max(1, embed.TABLE_ROWS // len(variants))  # at worst each record brings a new instruction per variant
    for start in range(0, count, step):
        yield order[start : start + step]


def _encode_segment(
    embedder: EmbeddingModel, variants: Sequence[Variant], segment: np.ndarray
) -> tuple[EncodedInstruction, dict[str, np.ndarray]]:
    """The segment's distinct instructions encoded, and for each variant the row of the table by record."""
    instructions: list[Instruction] = []
    local = {}
    for variant in variants:
        used = np.unique(variant.index[segment])
        position = np.full(len(variant.instructions), -1, np.int32)
        position[used] = len(instructions) + np.arange(len(used))
        instructions.extend(variant.instructions[i] for i in used)
        local[variant.name] = position[variant.index]
    distinct, remap = distinct_instructions(instructions)
    return embedder.instructions(distinct), {
        name: np.where(index >= 0, np.asarray(remap)[np.maximum(index, 0)], 0) for name, index in local.items()
    }
