"""What one record of any data set holds, on disk and in memory.

Every source yields `Record`s; `shards.py` stores them; the sidecar `Index` holds all the small fields of a split as
arrays, so that sampling and protocols never open an image.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

SCHEMA_VERSION = 1
MAX_CAMERA = 4095
"""Evaluation keeps this many camera numbers a namespace."""
MAX_CLOTHES = 2**31 - 1
VISIBLE, INFRARED = 0, 1
ATTRIBUTE_SLOTS = 8
"""Width of every attribute array. A slot holds a small non-negative value; -1 is unknown (of an image) or unnamed (of
an instruction)."""
UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class Record:
    """One image of one person, with the instruction that belongs to it.

    `image` is JPEG or PNG bytes as delivered. `person` is a global name, `namespace/pid`: the same name in two data
    sets is the same person. `camera` counts from 0 within the data set's namespace (or the person's, see Manifest);
    unknown is -1 for a query and -2 for a gallery image, so that camera junk never fires. `clothes` numbers outfits:
    same person and same number is the same outfit. `attributes` is what the person wears here (slot values). The
    `instruction_*` fields say what the instruction of this record asks for: for a training or gallery image its own
    outfit, for a query the wanted one.
    `sentences` are paraphrases of one instruction (li) or captions (t2i); `instruction_images` are alternatives of
    one visual instruction (ctcc, optionally cc). Constant sentences of a task are not stored.
    """

    image: bytes
    file: str
    person: str
    camera: int
    clothes: int = UNKNOWN
    modality: int = VISIBLE
    attributes: tuple[int, ...] = ()
    sentences: tuple[str, ...] = ()
    instruction_images: tuple[bytes, ...] = ()
    instruction_clothes: int = UNKNOWN
    instruction_attributes: tuple[int, ...] = ()


def pad_attributes(values: tuple[int, ...]) -> np.ndarray:
    """Returns i16[ATTRIBUTE_SLOTS], -1 beyond the given values. Raises ValueError if there are too many."""
    if len(values) > ATTRIBUTE_SLOTS:
        raise ValueError(f"{len(values)} attributes given, but schema.ATTRIBUTE_SLOTS is {ATTRIBUTE_SLOTS}")
    return np.array([*values, *[UNKNOWN] * (ATTRIBUTE_SLOTS - len(values))], np.int16)


@dataclasses.dataclass(frozen=True)
class Index:
    """The small fields of one split, N records, in record order (the sidecar file `index-<split>.npz`).

    `identity` indexes `Manifest.people`. `shard`, `offset`: where the record stands (shard number, position in it).
    `content` is the first 8 bytes of the sha256 of the image bytes, `instruction_key` a crc32 of the first sentence or
    first instruction image (0: none), so that equal instructions are known without reading them.
    """

    identity: np.ndarray  # i32[N]
    camera: np.ndarray  # i32[N]
    clothes: np.ndarray  # i32[N]
    modality: np.ndarray  # i8[N]
    attributes: np.ndarray  # i16[N, ATTRIBUTE_SLOTS]
    instruction_clothes: np.ndarray  # i32[N]
    instruction_attributes: np.ndarray  # i16[N, ATTRIBUTE_SLOTS]
    sentences: np.ndarray  # i16[N], how many
    instruction_images: np.ndarray  # i16[N], how many
    instruction_key: np.ndarray  # u32[N]
    content: np.ndarray  # u64[N]
    file: np.ndarray  # str[N]
    shard: np.ndarray  # i32[N]
    offset: np.ndarray  # i32[N]

    def __len__(self) -> int:
        return len(self.identity)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`manifest.json` of a built data set; its presence means that the build finished.

    `people` are all person names of all splits, sorted; `splits` maps a split to its counts and shard files
    ({"records", "identities", "cameras", "shards": [{"file", "records", "bytes", "sha256"}]}). `source` says where the
    images and instructions come from, and in `cameras_of` of which namespaces' people the cameras are numbered by that
    namespace, because their pictures are borrowed from it; `content_hash` is over the shards' hashes and `people` (of
    older builds over the shards alone).
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
