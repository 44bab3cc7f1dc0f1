"""One record as bytes: TFDS's tf.train.Example form of a `schema.Record`, written and parsed without tensorflow.

`FEATURES` is what stands in a data set's features.json, so `tfds.builder_from_directory` reads the same shards.
Writing goes through TFDS's own `ExampleSerializer`; parsing reads the proto directly, because TFDS's parser makes a
NumPy array of every field.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.dataset import schema


def _image() -> tfds.features.Image:
    return tfds.features.Image(shape=(None, None, 3))


FEATURES = tfds.features.FeaturesDict(
    {
        "image": _image(),
        "file": tfds.features.Text(),
        "identity": np.int64,
        "camera": np.int64,
        "clothes": np.int64,
        "modality": np.int64,
        "attributes": tfds.features.Sequence(np.int64),
        "sentences": tfds.features.Sequence(tfds.features.Text()),
        "instruction_images": tfds.features.Sequence(_image()),
        "instruction_clothes": np.int64,
        "instruction_attributes": tfds.features.Sequence(np.int64),
    }
)
FIELDS: tuple[str, ...] = tuple(sorted(FEATURES))
_SERIALIZER = ExampleSerializer(FEATURES.get_serialized_info())


def serialize(record: schema.Record, identity: int) -> bytes:
    """Returns the Example bytes of a record; equal records give equal bytes (map keys are written in sorted order).

    `identity` is the person's index in `Manifest.people`. Raises ValueError for fields out of range.
    """
    _check(record)
    example = {
        "image": record.image,
        "file": record.file.encode(),
        "identity": identity,
        "camera": record.camera,
        "clothes": record.clothes,
        "modality": record.modality,
        "attributes": np.array(record.attributes, np.int64),
        "sentences": [s.encode() for s in record.sentences],
        "instruction_images": list(record.instruction_images),
        "instruction_clothes": record.instruction_clothes,
        "instruction_attributes": np.array(record.instruction_attributes, np.int64),
    }
    # The wire order of a protobuf map is otherwise free, and shards are compared by hash.
    return _SERIALIZER.get_tf_example(example).SerializeToString(deterministic=True)


def _check(record: schema.Record) -> None:
    if record.modality not in (schema.VISIBLE, schema.INFRARED):
        raise ValueError(f"modality {record.modality} is neither schema.VISIBLE nor schema.INFRARED")
    if record.camera < -2:
        raise ValueError(f"camera {record.camera}: cameras count from 0; unknown is -1 (query) or -2 (gallery)")
    if min(record.clothes, record.instruction_clothes) < schema.UNKNOWN:
        raise ValueError(f"clothes {record.clothes}, {record.instruction_clothes}: outfits count from 0; -1 is unknown")
    schema.pad_attributes(record.attributes)
    schema.pad_attributes(record.instruction_attributes)


def _integer(feature: Any) -> int:
    return feature.int64_list.value[0]


def _integers(feature: Any) -> tuple[int, ...]:
    return tuple(feature.int64_list.value)


def _blob(feature: Any) -> bytes:
    return feature.bytes_list.value[0]


def _blobs(feature: Any) -> tuple[bytes, ...]:
    return tuple(feature.bytes_list.value)


def _text(feature: Any) -> str:
    return feature.bytes_list.value[0].decode()


def _texts(feature: Any) -> tuple[str, ...]:
    return tuple([value.decode() for value in feature.bytes_list.value])


_GETTERS: Mapping[str, Callable[[Any], Any]] = types.MappingProxyType(
    {
        "image": _blob,
        "file": _text,
        "identity": _integer,
        "camera": _integer,
        "clothes": _integer,
        "modality": _integer,
        "attributes": _integers,
        "sentences": _texts,
        "instruction_images": _blobs,
        "instruction_clothes": _integer,
        "instruction_attributes": _integers,
    }
)


def parse(data: bytes, fields: Sequence[str] = FIELDS) -> dict[str, Any]:
    """Returns {field: value} of one Example.

    Values: `image` bytes (not decoded); `file` str; `identity`, `camera`, `clothes`, `modality`, `instruction_clothes`
    int; `attributes`, `instruction_attributes` tuple[int, ...] as stored (unpadded); `sentences` tuple[str, ...];
    `instruction_images` tuple[bytes, ...]. Raises ValueError if the bytes are no Example of this form.
    """
    try:
        feature = tf_example_pb2.Example.FromString(data).features.feature
        return {field: _GETTERS[field](feature[field]) for field in fields}
    except Exception as error:  # protobuf's DecodeError, an absent scalar, a field name unknown here
        raise ValueError(f"not a record of this project's form ({type(error).__name__}: {error})") from error
