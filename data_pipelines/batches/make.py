"""From a step number to the arrays of its batch: sample, read, decode, augment, tokenize, lay out."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from data_pipelines.batches import augment as image_ops
from data_pipelines.batches import sampling
from data_pipelines.batches.layout import BatchPlan, TextEncoder, UnitLayout
from data_pipelines.dataset import schema
from data_pipelines.images import Size, decode_record, resize

Batch = dict[str, dict[str, np.ndarray]]

_KEY_BITS = 0x7FFFFFFF


class Reader(Protocol):
    """Random access to the records of one split (shards.ShardReader)."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns the raw fields of record i."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """The small fields of a train split that go into a batch, N records."""

    identity: np.ndarray  # i32[N], global
    camera: np.ndarray  # i32[N]
    clothes: np.ndarray  # i32[N]
    modality: np.ndarray  # i32[N]
    attributes: np.ndarray  # i32[N, ATTRIBUTE_SLOTS], what is worn; [clothes, -1, ...] where the set has no attributes
    wanted: np.ndarray  # i32[N, ATTRIBUTE_SLOTS], what the record's instruction asks for, in the same terms

    @classmethod
    def of(cls, index: schema.Index, to_global: np.ndarray) -> Columns:
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
    columns: Columns
    reader: Reader
    augment: image_ops.Augment


def reader_fields(layout: UnitLayout) -> tuple[str, ...]:
    """The record fields that batches of a unit need; reading fewer is faster."""
    if layout.slots == 0:
        return ("image", "file")
    return ("image", "file", "instruction_images" if layout.group == "visual" else "sentences")


def batch_spec(
    plan: BatchPlan,
    image_size: Size,
    instruction_image_size: Size,
    blocks: int | None = None,
    second_view: bool = False,
) -> dict[str, dict[str, tuple[tuple[int, ...], type[np.generic]]]]:
    """Shape and dtype of every array of a batch with `blocks` blocks (default: all), without any data."""
    r = plan.batch_blocks if blocks is None else blocks
    length = plan.constant_tokens.shape[1]
    spec: dict[str, dict[str, tuple[tuple[int, ...], type[np.generic]]]] = {}
    for group in plan.groups:
        b = plan.rows(group)
        views = tuple(VIEWS) if second_view else ("image",)
        fields: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            name: ((r, b, *image_size, 3), np.uint8) for name in views
        }
        for name in ("identity", "dataset", "task", "camera", "clothes", "modality"):
            fields[name] = ((r, b), np.int32)
        fields["valid"] = ((r, b), np.bool_)
        if group == "caption":
            for name in ("tokens", "key_tokens") if second_view else ("tokens",):
                fields[name] = ((r, b, length), np.int32)
        else:
            s, bc = plan.slots(group), plan.composed_rows(group)
            fields["attributes"] = ((r, b, schema.ATTRIBUTE_SLOTS), np.int32)
            fields["instruction"] = fields["instruction_key"] = ((r, b), np.int32)
            visual = group == "visual"
            fields["table"] = ((r, s, *instruction_image_size, 3), np.uint8) if visual else ((r, s, length), np.int32)
            for name in ("composed_row", "composed_instruction", "composed_key"):
                fields[name] = ((r, bc), np.int32)
            fields["composed_attributes"] = ((r, bc, schema.ATTRIBUTE_SLOTS), np.int32)
            fields["composed_valid"] = ((r, bc), np.bool_)
        spec[group] = fields
    return spec


class BatchMaker:
    """Callable: step -> (step, Batch). Picklable and without state, so any thread or process may make any step.

    Fields of `text` and `visual` groups, R requested blocks of b rows: image u8[R,b,H,W,3]; identity (global), dataset,
    task, camera, clothes, modality i32[R,b]; attributes i32[R,b,8]; valid bool[R,b]; instruction i32[R,b]: a slot of
    the block's `table` (text: token ids i32[R,s,L]; visual: u8[R,s,h,w,3]), or -1-c for constant sentence c;
    instruction_key i32[R,b]: equal for equal instructions, -1-c for constants, else 31 bits of a hash of the content;
    composed_row, composed_instruction, composed_key i32[R,bc], composed_attributes i32[R,bc,8] (-1: not asked),
    composed_valid bool[R,bc]. `caption`: the first fields without attributes, and tokens i32[R,b,L]. With `second_view`
    every group has key_image, like image: the same pictures under another augmentation, for a momentum model's keys,
    and captions have key_tokens, like tokens: another caption of the same image, where it has more than one.
    With accumulate = k > 1 every array has a leading axis [k]: plan steps k*step .. k*step + k-1.
    """

    def __init__(
        self,
        plan: BatchPlan,
        sources: Sequence[UnitSource],
        *,
        seed: int,
        blocks: Sequence[int],
        image_size: Size,
        instruction_image_size: Size,
        tokenizer: TextEncoder,
        accumulate: int = 1,
        second_view: bool = False,
    ) -> None:
        self.second_view = second_view
        self.plan, self.sources, self.tokenizer = plan, sources, tokenizer
        self.seed, self.blocks, self.accumulate = seed, tuple(blocks), accumulate
        self.image_size, self.instruction_image_size = image_size, instruction_image_size

    def __call__(self, step: int) -> tuple[int, Batch]:
        """Makes a batch. Raises ValueError naming data set, split, record and file of an image that does not decode."""
        spec = batch_spec(self.plan, self.image_size, self.instruction_image_size, len(self.blocks), self.second_view)
        lead = (self.accumulate,) if self.accumulate > 1 else ()
        batch = {
            group: {name: np.empty((*lead, *shape), dtype) for name, (shape, dtype) in fields.items()}
            for group, fields in spec.items()
        }
        for part in range(self.accumulate):
            views = batch
            if lead:
                views = {group: {name: a[part] for name, a in fields.items()} for group, fields in batch.items()}
            self._fill(views, step * self.accumulate + part)
        return step, batch

    def _fill(self, batch: Batch, step: int) -> None:
        people = [source.people for source in self.sources]
        samples = sampling.sample(self.plan, people, self.seed, step, self.blocks)
        for number, (layout, source, drawn) in enumerate(zip(self.plan.units, self.sources, samples, strict=True)):
            group, columns = batch[layout.group], source.columns
            rows = slice(layout.row, layout.row + layout.rows)
            for name in ("identity", "camera", "clothes", "modality"):
                group[name][:, rows] = getattr(columns, name)[drawn.record]
            group["dataset"][:, rows] = layout.dataset
            group["task"][:, rows] = layout.task_id
            group["valid"][:, rows] = True
            keys = np.zeros(drawn.slot_record.shape, np.int32)
            for local, block in enumerate(self.blocks):
                draws = {
                    view: sampling.random_stream(self.seed, stream, step, number, block).random(
                        (layout.rows, image_ops.DRAWS)
                    )
                    for view, stream in VIEWS.items()
                    if view in group
                }
                other = sampling.random_stream(self.seed, sampling.KEY_CAPTION_STREAM, step, number, block)
                self._fill_block(group, local, layout, source, drawn, draws, other, keys)
            if layout.group != "caption":
                group["attributes"][:, rows] = columns.attributes[drawn.record]
                self._fill_instructions(group, rows, layout, columns, drawn, keys)

    def _fill_block(
        self,
        group: Mapping[str, np.ndarray],
        local: int,
        layout: UnitLayout,
        source: UnitSource,
        drawn: sampling.UnitSample,
        draws: Mapping[str, np.ndarray],
        other: np.random.Generator,
        keys: np.ndarray,
    ) -> None:
        """Images and instructions of one unit in one block; `draws` holds uniform numbers f64[rows, DRAWS] a view,
        `other` chooses the key captions, `keys` i32[R, slots] receives the instructions' keys."""
        slot_record = drawn.slot_record[local]
        ids = np.unique(np.concatenate([drawn.record[local], slot_record])).tolist()
        records = {i: source.reader[i] for i in ids}
        where = f"data set {layout.unit.dataset}, split train"
        for row, record in enumerate(drawn.record[local].tolist()):
            image = decode_record(records[record]["image"], self.image_size, where, record, records[record]["file"])
            for view, uniform in draws.items():
                out = group[view][local, layout.row + row]
                image_ops.augment_into(out, image, image_ops.parameters(uniform[row], source.augment, self.image_size))
        if layout.slots == 0:
            return
        chosen = list(zip(slot_record.tolist(), drawn.slot_choice[local].tolist(), strict=True))
        if layout.group == "visual":
            cache: dict[tuple[int, int], np.ndarray] = {}
            for slot, (record, choice) in enumerate(chosen):
                data = records[record]["instruction_images"][choice]
                if (record, choice) not in cache:
                    at = f"{where}, instruction image {choice}"
                    image = decode_record(data, self.instruction_image_size, at, record, records[record]["file"])
                    cache[record, choice] = resize(image, self.instruction_image_size)
                group["table"][local, layout.slot + slot] = cache[record, choice]
                keys[local, slot] = zlib.crc32(data) & _KEY_BITS
            return
        tokens = self.tokenizer.encode([records[record]["sentences"][choice] for record, choice in chosen])
        keys[local] = [zlib.crc32(row.tobytes()) & _KEY_BITS for row in np.ascontiguousarray(tokens, np.int32)]
        if layout.group == "caption":
            rows = slice(layout.row, layout.row + layout.rows)
            group["tokens"][local, rows] = tokens
            if "key_tokens" in group:
                shares = other.random(layout.slots).tolist()
                captions = [
                    another_caption(records[record]["sentences"], choice, share)
                    for (record, choice), share in zip(chosen, shares, strict=True)
                ]
                group["key_tokens"][local, rows] = self.tokenizer.encode(captions)
        else:
            group["table"][local, layout.slot : layout.slot + layout.slots] = tokens

    def _fill_instructions(
        self,
        group: Mapping[str, np.ndarray],
        rows: slice,
        layout: UnitLayout,
        columns: Columns,
        drawn: sampling.UnitSample,
        keys: np.ndarray,
    ) -> None:
        neutral = -1 - self.plan.neutral
        if layout.slots:
            own, own_key = layout.slot + drawn.slot, np.take_along_axis(keys, drawn.slot, axis=1)
        else:
            own = own_key = np.full_like(drawn.slot, -1 - layout.constant)
        group["instruction"][:, rows] = np.where(drawn.neutral, neutral, own)
        group["instruction_key"][:, rows] = np.where(drawn.neutral, neutral, own_key)
        if layout.composed_rows:
            composed = slice(layout.composed_row, layout.composed_row + layout.composed_rows)
            group["composed_row"][:, composed] = np.arange(rows.start, rows.stop, dtype=np.int32)
            group["composed_instruction"][:, composed] = layout.slot + drawn.composed_slot
            group["composed_key"][:, composed] = np.take_along_axis(keys, drawn.composed_slot, axis=1)
            wanted = columns.wanted[np.take_along_axis(drawn.slot_record, drawn.composed_slot, axis=1)]
            valid = drawn.composed_valid
            group["composed_attributes"][:, composed] = np.where(valid[..., None], wanted, schema.UNKNOWN)
            group["composed_valid"][:, composed] = valid


def another_caption(captions: Sequence[str], own: int, share: float) -> str:
    """Any caption of an image but number `own`, chosen by `share` in [0, 1); the same one if there is no other."""
    others = len(captions) - 1
    return captions[(own + 1 + int(share * others)) % len(captions)] if others else captions[0]
