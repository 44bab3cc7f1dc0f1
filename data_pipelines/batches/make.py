"""From a step number to the arrays of its batch: sample, read, decode, augment, tokenize, lay out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from data_pipelines.batches import sampling
from data_pipelines.batches.augment import DRAWS, Augment, augment_into, parameters, shrunk
from data_pipelines.batches.layout import BatchPlan, UnitLayout
from data_pipelines.dataset import schema
from data_pipelines.images import MAX_PIXELS, Size, decode_record, resize
from data_pipelines.instructions import unknown_words
from data_pipelines.instructions.tokenizer import Tokenizer

Batch = dict[str, dict[str, np.ndarray]]
BatchSpec = dict[str, dict[str, tuple[tuple[int, ...], type[np.generic]]]]
"""Shape and dtype of every array of a batch."""
Augments = Augment | Mapping[str, Augment]
"""One augmentation for all data sets, or one per data set (hue jitter contradicts a sentence that names colours)."""

KEY_WORDS = 2
"""Words of 31 bits in an instruction's key. One word merges two instructions of a batch in every tenth run or so."""


@runtime_checkable
class Reader(Protocol):
    """Random access to the records of one split (`reader.ShardReader`)."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns the raw fields of record i."""
        ...


@dataclasses.dataclass(frozen=True)
class BatchOptions:
    """What a batch depends on beside its plan, its data and the step.

    Attributes:
      seed: any integer.
      image_size, instruction_image_size: (height, width).
      augment: of the rows' images.
      accumulate: plan steps that make up one step.
      second_view: whether every image comes under a second augmentation, too (`key_image`).
      growth: (first step, size) of images that grow to `image_size`, from step 0 on; () = that size in every step.
    """

    seed: int
    image_size: Size
    instruction_image_size: Size
    augment: Augments = dataclasses.field(default_factory=Augment)
    accumulate: int = 1
    second_view: bool = False
    growth: tuple[tuple[int, Size], ...] = ()

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate = {self.accumulate} must be at least 1")

    def size_at(self, step: int) -> Size:
        """Returns the size of the rows' images in a step."""
        return next((size for first, size in reversed(self.growth) if first <= step), self.image_size)

    def augment_of(self, dataset: str) -> Augment:
        """Returns the augmentation of one data set."""
        return self.augment if isinstance(self.augment, Augment) else self.augment[dataset]

    def fingerprint(self, datasets: Sequence[str]) -> dict[str, Any]:
        """Returns JSON values; `datasets`: names of those in the mix."""
        return {
            "seed": self.seed,
            "accumulate": self.accumulate,
            "second_view": self.second_view,
            "image_size": list(self.image_size),
            "instruction_image_size": list(self.instruction_image_size),
            **({"growth": [[first, list(size)] for first, size in self.growth]} if self.growth else {}),
            "augment": {
                name: {
                    key: list(value) if isinstance(value, tuple) else value
                    for key, value in dataclasses.asdict(self.augment_of(name)).items()
                }
                for name in datasets
            },
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """The small fields of a train split that go into a batch, N records."""

    identity: np.ndarray  # i32[N], global
    camera: np.ndarray  # i32[N]
    clothes: np.ndarray  # i32[N]
    modality: np.ndarray  # i32[N]
    attributes: np.ndarray  # i32[N, ATTRIBUTE_SLOTS], what is worn; [clothes, -1, ...] where the set has no attributes
    wanted: np.ndarray  # i32[N, ATTRIBUTE_SLOTS], what the record's instruction asks for, in the same terms

    @classmethod
    def of(cls, index: schema.Index, to_global: np.ndarray) -> Labels:
        """Makes the labels of a split; `to_global`: i32[people], local to global identity."""
        clothes = index.clothes.astype(np.int32)
        if (index.attributes != schema.UNKNOWN).any():
            attributes = index.attributes.astype(np.int32)
            named = (index.instruction_attributes != schema.UNKNOWN).any()
            wanted = index.instruction_attributes.astype(np.int32) if named else attributes
        else:
            attributes, wanted = np.full((2, len(index), schema.ATTRIBUTE_SLOTS), schema.UNKNOWN, np.int32)
            attributes[:, 0] = clothes
            given = index.instruction_clothes != schema.UNKNOWN
            wanted[:, 0] = np.where(given, index.instruction_clothes, clothes)
        return cls(
            to_global[index.identity],
            index.camera.astype(np.int32),
            clothes,
            index.modality.astype(np.int32),
            attributes,
            wanted,
        )


VIEWS = {"image": sampling.AUGMENT_STREAM, "key_image": sampling.KEY_VIEW_STREAM}
"""Fields that hold the rows' pictures, and the random stream that augments each: one more view changes no other."""


@dataclasses.dataclass(frozen=True, eq=False)
class UnitSource:
    """What one unit of the plan reads."""

    people: sampling.People
    labels: Labels
    reader: Reader
    augment: Augment
    max_pixels: int = MAX_PIXELS


def reader_fields(layout: UnitLayout) -> tuple[str, ...]:
    """Returns the record fields that batches of a unit need; reading fewer is faster."""
    if layout.entries == 0:
        return ("image", "file")
    return ("image", "file", "instruction_images" if layout.kind == "visual" else "sentences")


def batch_spec(
    plan: BatchPlan,
    image_size: Size,
    instruction_image_size: Size,
    blocks: int | None = None,
    second_view: bool = False,
) -> BatchSpec:
    """Returns shape and dtype of every array of a batch with `blocks` blocks (default: all), without any data."""
    r = plan.batch_blocks if blocks is None else blocks
    length = plan.constant_tokens.shape[1]
    spec: BatchSpec = {}
    for kind in plan.kinds:
        b = plan.rows(kind)
        views = tuple(VIEWS) if second_view else ("image",)
        fields: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            name: ((r, b, *image_size, 3), np.uint8) for name in views
        }
        for name in ("identity", "dataset", "task", "camera", "clothes", "modality"):
            fields[name] = ((r, b), np.int32)
        fields["valid"] = ((r, b), np.bool_)
        if kind == "caption":
            for name in ("tokens", "key_tokens") if second_view else ("tokens",):
                fields[name] = ((r, b, length), np.int32)
        else:
            s, bc = plan.entries(kind), plan.composed_rows(kind)
            fields["attributes"] = ((r, b, schema.ATTRIBUTE_SLOTS), np.int32)
            fields["instruction"] = ((r, b), np.int32)
            fields["instruction_key"] = ((r, b, KEY_WORDS), np.int32)
            visual = kind == "visual"
            fields["table"] = ((r, s, *instruction_image_size, 3), np.uint8) if visual else ((r, s, length), np.int32)
            for name in ("composed_row", "composed_instruction"):
                fields[name] = ((r, bc), np.int32)
            fields["composed_attributes"] = ((r, bc, schema.ATTRIBUTE_SLOTS), np.int32)
            fields["composed_valid"] = ((r, bc), np.bool_)
        spec[kind] = fields
    return spec


@dataclasses.dataclass(frozen=True, eq=False)
class _BlockRows:
    """One unit's rows of one block: what was drawn for them, and the block's arrays that they are written to."""

    layout: UnitLayout
    source: UnitSource
    drawn: sampling.UnitSample  # of this block alone: arrays without axis 0
    arrays: Mapping[str, np.ndarray]  # field -> [b, ...] of the unit's kind
    stream: Callable[[int], np.random.Generator]  # purpose -> the random numbers of this unit, step and block
    records: Mapping[int, Mapping[str, Any]]  # record -> raw fields

    @property
    def where(self) -> str:
        return f"data set {self.layout.unit.dataset}, split train"

    @property
    def choices(self) -> list[tuple[int, int]]:
        """(record, which of its paraphrases or instruction images) per table entry."""
        return list(zip(self.drawn.entry_record.tolist(), self.drawn.entry_choice.tolist(), strict=True))

    def write_images(self) -> None:
        """Decodes the rows' images once, and augments them once per view, in the size of the arrays."""
        size = self.arrays["image"].shape[1], self.arrays["image"].shape[2]
        draws = {
            view: self.stream(purpose).random((self.layout.rows, DRAWS))
            for view, purpose in VIEWS.items()
            if view in self.arrays
        }
        for row, record in enumerate(self.drawn.record.tolist()):
            fields = self.records[record]
            image = shrunk(self._decoded(fields["image"], size, record), size)
            for view, uniform in draws.items():
                out = self.arrays[view][self.layout.row + row]
                augment_into(out, image, parameters(uniform[row], self.source.augment, size))

    def _decoded(self, data: bytes, size: Size, record: int, choice: int | None = None) -> np.ndarray:
        """Decodes a record's picture, or its instruction image number `choice`, for use at `size`."""
        which = "" if choice is None else f", instruction image {choice}"
        where = f"{self.where}{which}, record {record}, file {self.records[record]['file']}"
        return decode_record(data, where, size, self.source.max_pixels)

    def write_instruction_images(self, size: Size) -> list[np.ndarray]:
        """Writes the table of a visual unit; returns one key per entry."""
        resized: dict[tuple[int, int], np.ndarray] = {}
        keys = []
        for entry, (record, choice) in enumerate(self.choices):
            fields = self.records[record]
            data = fields["instruction_images"][choice]
            if (record, choice) not in resized:
                resized[record, choice] = resize(self._decoded(data, size, record, choice), size)
            self.arrays["table"][self.layout.entry + entry] = resized[record, choice]
            keys.append(instruction_key(data))
        return keys

    def write_sentences(self, tokenizer: Tokenizer) -> list[np.ndarray]:
        """Writes the table of a text unit, or the captions of a caption unit; returns one key per entry."""
        layout, choices = self.layout, self.choices
        tokens = self._encoded(tokenizer, [self.records[record]["sentences"][choice] for record, choice in choices])
        if layout.kind == "caption":
            rows = slice(layout.row, layout.row + layout.rows)
            self.arrays["tokens"][rows] = tokens
            if "key_tokens" in self.arrays:
                shares = self.stream(sampling.KEY_CAPTION_STREAM).random(layout.entries).tolist()
                captions = [
                    another_caption(self.records[record]["sentences"], choice, share)
                    for (record, choice), share in zip(choices, shares, strict=True)
                ]
                self.arrays["key_tokens"][rows] = self._encoded(tokenizer, captions)
        else:
            self.arrays["table"][layout.entry : layout.entry + layout.entries] = tokens
        return [instruction_key(row.tobytes()) for row in np.ascontiguousarray(tokens, np.int32)]

    def _encoded(self, tokenizer: Tokenizer, sentences: Sequence[str]) -> np.ndarray:
        """Returns token ids. Raises UnknownWordsError, which names record and file."""
        for sentence, (record, _) in zip(sentences, self.choices, strict=True):
            where = f"{self.where}, record {record} ({self.records[record]['file']})"
            unknown_words.check(tokenizer, [sentence], where, warn=False)
        return tokenizer.encode(sentences)


class BatchMaker:
    """Callable: step -> (step, Batch). Picklable and without state, so any thread or process may make any step.

    A batch has one group of fields per instruction kind. Fields of `text` and `visual`, R requested blocks of b rows:

    | field | array | what |
    |---|---|---|
    | image | u8[R,b,H,W,3] | augmented |
    | identity, dataset, task, camera, clothes, modality | i32[R,b] | identities are global |
    | attributes | i32[R,b,8] | what is worn |
    | valid | bool[R,b] | true |
    | table | i32[R,s,L] (text), u8[R,s,h,w,3] (visual) | the block's distinct instructions |
    | instruction | i32[R,b] | entry of the block's table, or -1-c for constant sentence c |
    | instruction_key | i32[R,b,2] | equal for equal instructions: -1-c for constants, else 62 bits of a content hash |
    | composed_row, composed_instruction | i32[R,bc] | as above, of composed rows |
    | composed_attributes | i32[R,bc,8] | what the instruction asks for; -1: not asked |
    | composed_valid | bool[R,bc] | whether the person has another outfit in the batch |

    `caption` has image to modality, valid, and tokens i32[R,b,L]. With `second_view` every group has key_image, like
    image: the same pictures under another augmentation, for a momentum model's keys; captions have key_tokens, like
    tokens: another caption of the same image, where it has more than one. With accumulate = k > 1 every array has a
    leading axis [k]: plan steps k*step .. k*step + k-1. With `growth` H and W vary by step.
    """

    def __init__(
        self,
        plan: BatchPlan,
        sources: Sequence[UnitSource],
        options: BatchOptions,
        tokenizer: Tokenizer,
        blocks: Sequence[int],
    ) -> None:
        """Takes the plan, one source per unit, and the global numbers of the blocks to make, in the order of axis 0."""
        self.plan, self.sources, self.options = plan, tuple(sources), options
        self.tokenizer, self.blocks = tokenizer, tuple(blocks)
        self.spec = self._spec(options.image_size)

    def _spec(self, size: Size) -> BatchSpec:
        o = self.options
        return batch_spec(self.plan, size, o.instruction_image_size, len(self.blocks), o.second_view)

    def __call__(self, step: int) -> tuple[int, Batch]:
        """Makes a batch. Raises DatasetError, which names record and file, for an image that does not decode."""
        accumulate = self.options.accumulate
        lead = (accumulate,) if accumulate > 1 else ()
        batch = {
            kind: {name: np.empty((*lead, *shape), dtype) for name, (shape, dtype) in fields.items()}
            for kind, fields in self._spec(self.options.size_at(step)).items()
        }
        for part in range(accumulate):
            views = batch
            if lead:
                views = {kind: {name: a[part] for name, a in fields.items()} for kind, fields in batch.items()}
            self._fill(views, step * accumulate + part)
        return step, batch

    def _fill(self, batch: Batch, step: int) -> None:
        samples = sampling.sample(
            self.plan, [source.people for source in self.sources], self.options.seed, step, self.blocks
        )
        for number, (layout, source, drawn) in enumerate(zip(self.plan.units, self.sources, samples, strict=True)):
            group, labels = batch[layout.kind], source.labels
            rows = slice(layout.row, layout.row + layout.rows)
            for name in ("identity", "camera", "clothes", "modality"):
                group[name][:, rows] = getattr(labels, name)[drawn.record]
            group["dataset"][:, rows] = layout.dataset
            group["task"][:, rows] = layout.task_id
            group["valid"][:, rows] = True
            keys = np.zeros((*drawn.entry_record.shape, KEY_WORDS), np.int32)
            for local in range(len(self.blocks)):
                own = self._fill_block(self._block_rows(group, step, number, drawn, local))
                keys[local] = np.array(own, np.int32).reshape(-1, KEY_WORDS)
            if layout.kind != "caption":
                group["attributes"][:, rows] = labels.attributes[drawn.record]
                self._fill_instructions(group, number, drawn, keys)

    def _block_rows(
        self, group: Mapping[str, np.ndarray], step: int, number: int, drawn: sampling.UnitSample, local: int
    ) -> _BlockRows:
        layout, source, block = self.plan.units[number], self.sources[number], self.blocks[local]
        own = drawn.block(local)
        return _BlockRows(
            layout=layout,
            source=source,
            drawn=own,
            arrays={name: array[local] for name, array in group.items()},
            stream=lambda purpose: sampling.random_stream(self.options.seed, purpose, step, number, block),
            records={i: source.reader[i] for i in np.unique(np.concatenate([own.record, own.entry_record])).tolist()},
        )

    def _fill_block(self, rows: _BlockRows) -> list[np.ndarray]:
        """Writes images and instructions of one unit in one block; returns the keys of its table entries."""
        rows.write_images()
        if rows.layout.entries == 0:
            return []
        if rows.layout.kind == "visual":
            return rows.write_instruction_images(self.options.instruction_image_size)
        return rows.write_sentences(self.tokenizer)

    def _fill_instructions(
        self, group: Mapping[str, np.ndarray], number: int, drawn: sampling.UnitSample, keys: np.ndarray
    ) -> None:
        """Writes which instruction each row and composed row of a unit reads; `keys`: i32[R, entries, 2]."""
        layout, neutral = self.plan.units[number], -1 - self.plan.neutral
        if layout.entries:
            own, own_key = layout.entry + drawn.entry, np.take_along_axis(keys, drawn.entry[..., None], axis=1)
        else:
            own = np.full_like(drawn.entry, -1 - layout.constant)
            own_key = own[..., None]
        rows = slice(layout.row, layout.row + layout.rows)
        group["instruction"][:, rows] = np.where(drawn.neutral, neutral, own)
        group["instruction_key"][:, rows] = np.where(drawn.neutral[..., None], neutral, own_key)
        if layout.composed_rows:
            composed = slice(layout.composed_row, layout.composed_row + layout.composed_rows)
            group["composed_row"][:, composed] = np.arange(rows.start, rows.stop, dtype=np.int32)
            group["composed_instruction"][:, composed] = layout.entry + drawn.composed_entry
            asked = np.take_along_axis(drawn.entry_record, drawn.composed_entry, axis=1)
            valid, wanted = drawn.composed_valid, self.sources[number].labels.wanted[asked]
            group["composed_attributes"][:, composed] = np.where(valid[..., None], wanted, schema.UNKNOWN)
            group["composed_valid"][:, composed] = valid


def instruction_key(data: bytes) -> np.ndarray:
    """Returns i32[2], never negative: 62 bits of a hash of an instruction's bytes."""
    words = np.frombuffer(hashlib.blake2b(data, digest_size=4 * KEY_WORDS).digest(), "<u4")
    return (words & 0x7FFFFFFF).astype(np.int32)


def another_caption(captions: Sequence[str], own: int, share: float) -> str:
    """Returns any caption of an image but number `own`, chosen by `share` in [0, 1); the same if there is no other."""
    others = len(captions) - 1
    return captions[(own + 1 + int(share * others)) % len(captions)] if others else captions[0]
