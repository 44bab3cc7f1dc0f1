"""The fields of a record, stated once: what a shard stores of each and what the index keeps of it.

`Record` states name, type, default, storage and index column of every field; the stored form (`record_format`), the
columns of the `Index` and its file (`index`) are derived from it. Sources yield `Record`s; samplers and protocols read
the `Index` and never open an image for a small field.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

SCHEMA_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN_NAME = re.compile(r"[\w.-]+")
MAX_CAMERA = MAX_CLOTHES = 2**31 - 1
VISIBLE, INFRARED = 0, 1
ATTRIBUTE_SLOTS = 8
"""Width of every attribute array. A slot holds a small non-negative value; -1 is unknown (of an image) or unnamed (of
an instruction)."""
UNKNOWN = -1


class Storage(enum.Enum):
    """How a shard stores a field."""

    IMAGE = enum.auto()
    IMAGES = enum.auto()
    TEXT = enum.auto()
    TEXTS = enum.auto()
    INTEGER = enum.auto()
    INTEGERS = enum.auto()


def pad_attributes(values: tuple[int, ...]) -> np.ndarray:
    """Returns i16[ATTRIBUTE_SLOTS], -1 beyond the given values. Raises ValueError if there are too many."""
    if len(values) > ATTRIBUTE_SLOTS:
        raise ValueError(f"{len(values)} attributes given, but schema.ATTRIBUTE_SLOTS is {ATTRIBUTE_SLOTS}")
    return np.array([*values, *[UNKNOWN] * (ATTRIBUTE_SLOTS - len(values))], np.int16)


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the index.

    Attributes:
      name: its name.
      dtype: of its values; `np.str_` columns have the width of their longest value.
      value: makes a row's value of the record's field (or, for a column of no single field, of the record).
      width: values per row; 0 is a column of scalars.
    """

    name: str
    dtype: type[np.generic]
    value: Callable[[Any], Any] = lambda value: value
    width: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return (self.width,) if self.width else ()

    def array(self, values: Any) -> np.ndarray:
        """Returns the values of N rows as an array of the column's dtype, [N] or [N, width]."""
        return np.array(values, self.dtype).reshape(-1, *self.shape)


def _stored(storage: Storage, column: Column | None = None, name: str | None = None) -> dict[str, Any]:
    """Returns the metadata of a field; `name`: of the stored field, where a shard holds another form of the value."""
    return {"storage": storage, "column": column, "name": name}


@dataclasses.dataclass(frozen=True)
class Record:
    """One image of one person, with the instruction that belongs to it.

    Attributes:
      image: bytes of a JPEG, PNG or other picture, as delivered.
      file: name of the picture's file in the raw data set.
      person: global name `namespace/pid`; the same name in two data sets is the same person. Shards store its index in
        `Manifest.people` as `identity`.
      camera: counts from 0 within the data set's namespace (or the person's, see Manifest); unknown is -1 for a query
        and -2 for a gallery image, so that the junk rule of cameras never applies.
      clothes: number of the outfit; the same person and number is the same outfit.
      modality: VISIBLE or INFRARED.
      attributes: slot values of what the person wears.
      sentences: paraphrases of one instruction (li) or captions (t2i). Constant sentences of a task are not stored.
      instruction_images: alternatives of one visual instruction (ctcc, optionally cc).
      instruction_clothes: the outfit that the instruction asks for: of a training or gallery image its own, of a query
        the wanted one.
      instruction_attributes: slot values that the instruction asks for.
    """

    image: bytes = dataclasses.field(metadata=_stored(Storage.IMAGE))
    file: str = dataclasses.field(metadata=_stored(Storage.TEXT, Column("file", np.str_)))
    person: str = dataclasses.field(metadata=_stored(Storage.INTEGER, Column("identity", np.int32), name="identity"))
    camera: int = dataclasses.field(metadata=_stored(Storage.INTEGER, Column("camera", np.int32)))
    clothes: int = dataclasses.field(default=UNKNOWN, metadata=_stored(Storage.INTEGER, Column("clothes", np.int32)))
    modality: int = dataclasses.field(default=VISIBLE, metadata=_stored(Storage.INTEGER, Column("modality", np.int8)))
    attributes: tuple[int, ...] = dataclasses.field(
        default=(),
        metadata=_stored(Storage.INTEGERS, Column("attributes", np.int16, pad_attributes, ATTRIBUTE_SLOTS)),
    )
    sentences: tuple[str, ...] = dataclasses.field(
        default=(), metadata=_stored(Storage.TEXTS, Column("sentence_count", np.int16, len))
    )
    instruction_images: tuple[bytes, ...] = dataclasses.field(
        default=(), metadata=_stored(Storage.IMAGES, Column("instruction_image_count", np.int16, len))
    )
    instruction_clothes: int = dataclasses.field(
        default=UNKNOWN, metadata=_stored(Storage.INTEGER, Column("instruction_clothes", np.int32))
    )
    instruction_attributes: tuple[int, ...] = dataclasses.field(
        default=(),
        metadata=_stored(Storage.INTEGERS, Column("instruction_attributes", np.int16, pad_attributes, ATTRIBUTE_SLOTS)),
    )


@dataclasses.dataclass(frozen=True)
class StoredField:
    """One field as a shard stores it: `attribute` of Record, under `name`."""

    attribute: str
    name: str
    storage: Storage
    column: Column | None


FIELDS = tuple(
    StoredField(field.name, field.metadata["name"] or field.name, field.metadata["storage"], field.metadata["column"])
    for field in dataclasses.fields(Record)
)
"""The fields of a record in the order of `Record`."""


def instruction_key(record: Record) -> int:
    """Returns crc32 of the record's first sentence, else of its first instruction image; 0 if it has neither.

    Different keys mean different instructions. Equal ones prove nothing: among 70,000 captions two of one checksum are
    likely.
    """
    if record.sentences:
        return zlib.crc32(record.sentences[0].encode()) or 1
    if record.instruction_images:
        return zlib.crc32(record.instruction_images[0]) or 1
    return 0


def short_hash(data: bytes) -> int:
    """Returns the first 8 bytes of the sha256 of some bytes, as a number."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


INSTRUCTION_KEY = Column("instruction_key", np.uint32, instruction_key)
CONTENT = Column("content", np.uint64)
RECORD_HASH = Column("record_hash", np.uint64)
SHARD = Column("shard", np.int32)
OFFSET = Column("offset", np.int32)

COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (*(f.column for f in FIELDS if f.column), INSTRUCTION_KEY, CONTENT, SHARD, OFFSET, RECORD_HASH)
}
"""The columns of the index by name: first of single fields, then of whole records."""


class Index:
    """Small fields of the N records of a split, in record order; `index.camera` is the column `camera`.

    | column | array | what |
    |---|---|---|
    | identity | i32[N] | index in `Manifest.people` |
    | camera, clothes, instruction_clothes | i32[N] | as in Record |
    | modality | i8[N] | as in Record |
    | attributes, instruction_attributes | i16[N, ATTRIBUTE_SLOTS] | as in Record, padded with -1 |
    | sentence_count, instruction_image_count | i16[N] | how many the record holds |
    | instruction_key | u32[N] | checksum of the instruction, 0 without one (see `instruction_key`) |
    | content | u64[N] | hash of the image bytes, see `short_hash` |
    | record_hash | u64[N] | hash of the stored record; older folders have no such column |
    | file | str[N] | as in Record |
    | shard, offset | i32[N] | number of the shard, position in it |
    """

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        """Takes some or all columns by name.

        Raises:
          ValueError: an unknown column, or columns of different lengths.
        """
        unknown = sorted(set(columns) - set(COLUMNS))
        lengths = {len(column) for column in columns.values()}
        if unknown or len(lengths) != 1:
            raise ValueError(f"an index needs columns of one length: unknown {unknown}, lengths {sorted(lengths)}")
        self._columns = dict(columns)
        self._length = lengths.pop()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names of the columns."""
        return iter(self._columns)

    def __getattr__(self, name: str) -> np.ndarray:
        columns = self.__dict__.get("_columns", {})
        if name not in columns:
            raise AttributeError(f"the index holds no column {name!r}; it holds {', '.join(columns)}")
        return columns[name]

    def take(self, rows: slice | np.ndarray) -> Index:
        """Returns the index of some rows (a slice, numbers or a mask)."""
        return Index({name: column[rows] for name, column in self._columns.items()})


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`manifest.json` of a built data set; its presence means that the build finished.

    Attributes:
      name, version, task, namespace: as given to the build.
      schema_version: SCHEMA_VERSION of the code that wrote it.
      people: person names of all splits, sorted.
      splits: split -> {"records", "identities", "cameras", "shards": [{"file", "records", "bytes", "sha256"}],
        "index": {"bytes", "sha256"}, "skipped": [{"file", "reason"}]}; older folders have no "index".
      source: where images and instructions come from; `cameras_of` lists namespaces whose people have the cameras of
        that namespace, because their pictures are borrowed from it.
      content_hash: over the shards' hashes and `people` (of older builds over the shards alone).
    """

    name: str
    version: str
    schema_version: int
    task: str
    namespace: str
    people: list[str]
    splits: dict[str, dict[str, Any]]
    source: dict[str, Any]
    content_hash: str

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Manifest:
        """Returns the manifest of JSON values. Raises ValueError, TypeError or KeyError for another form."""
        types = {field.name: field.type for field in dataclasses.fields(cls)}
        if set(values) != set(types):
            raise ValueError(f"missing or unknown keys {sorted(set(types) ^ set(values))}")
        for name, kind in {"str": str, "int": int}.items():
            wrong = [key for key, stated in types.items() if stated == name and not isinstance(values[key], kind)]
            if wrong:
                raise ValueError(f"{wrong[0]} is {values[wrong[0]]!r}")
        if not isinstance(values["people"], list) or not all(isinstance(name, str) for name in values["people"]):
            raise ValueError("people is no list of names")
        if not isinstance(values["splits"], dict) or not isinstance(values["source"], dict):
            raise ValueError("splits or source is no table")
        for split, value in values["splits"].items():
            counts = [value["records"], value["identities"], value["cameras"]]
            for shard in value["shards"]:
                counts += [shard["records"], shard["bytes"]]
                if not _SHA256.fullmatch(shard["sha256"]) or not _PLAIN_NAME.fullmatch(shard["file"]):
                    raise ValueError(f"a shard of {split} is {shard}")
            for count in counts:
                if type(count) is not int or count < 0:
                    raise ValueError(f"a count of {split} is {count!r}")
            if sum(shard["records"] for shard in value["shards"]) != value["records"]:
                raise ValueError(f"the shards of {split} have other than {value['records']} records")
            for item in value["skipped"]:
                if not isinstance(item["file"], str) or not isinstance(item["reason"], str):
                    raise ValueError(f"a skipped picture of {split} is {item}")
            if "index" in value and not _SHA256.fullmatch(value["index"]["sha256"]):
                raise ValueError(f"the index of {split} is {value['index']}")
        return cls(**values)
