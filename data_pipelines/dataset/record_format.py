"""One record as bytes: the tf.train.Example form that TFDS gives a `schema.Record`, without tensorflow.

`FEATURES` is what a data set's features.json holds, so `tfds.builder_from_directory` reads the same shards. Writing
goes through TFDS's own `ExampleSerializer`; parsing reads the proto directly, because TFDS's parser makes a NumPy array
of every field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.dataset import schema
from data_pipelines.dataset.schema import Storage


class _Form(NamedTuple):
    """How one kind of storage is described to TFDS, given to its serializer and read from an Example's feature."""

    feature: Callable[[], Any]
    encode: Callable[[Any], Any]
    parse: Callable[[Any], Any]


def _image() -> tfds.features.Image:
    return tfds.features.Image(shape=(None, None, 3))


_FORMS = {
    Storage.IMAGE: _Form(_image, bytes, lambda feature: feature.bytes_list.value[0]),
    Storage.IMAGES: _Form(
        lambda: tfds.features.Sequence(_image()), list, lambda feature: tuple(feature.bytes_list.value)
    ),
    Storage.TEXT: _Form(tfds.features.Text, str.encode, lambda feature: feature.bytes_list.value[0].decode()),
    Storage.TEXTS: _Form(
        lambda: tfds.features.Sequence(tfds.features.Text()),
        lambda texts: [text.encode() for text in texts],
        lambda feature: tuple([value.decode() for value in feature.bytes_list.value]),
    ),
    Storage.INTEGER: _Form(lambda: np.int64, lambda value: value, lambda feature: feature.int64_list.value[0]),
    Storage.INTEGERS: _Form(
        lambda: tfds.features.Sequence(np.int64),
        lambda values: np.array(values, np.int64),
        lambda feature: tuple(feature.int64_list.value),
    ),
}
FEATURES = tfds.features.FeaturesDict({field.name: _FORMS[field.storage].feature() for field in schema.FIELDS})
FIELDS: tuple[str, ...] = tuple(sorted(FEATURES))
"""Names of the stored fields."""
_SERIALIZER = ExampleSerializer(FEATURES.get_serialized_info())
_PARSERS = {field.name: _FORMS[field.storage].parse for field in schema.FIELDS}


def serialize(record: schema.Record, identity: int) -> bytes:
    """Returns the Example bytes of a record; equal records give equal bytes.

    Args:
      record: the record.
      identity: the person's index in `Manifest.people`.

    Raises:
      ValueError: a field is out of range.
    """
    _check(record)
    values = {field.name: getattr(record, field.attribute) for field in schema.FIELDS} | {"identity": identity}
    example = {field.name: _FORMS[field.storage].encode(values[field.name]) for field in schema.FIELDS}
    # The wire order of a protobuf map is otherwise free, and shards are compared by hash.
    return _SERIALIZER.get_tf_example(example).SerializeToString(deterministic=True)


def _check(record: schema.Record) -> None:
    if record.modality not in (schema.VISIBLE, schema.INFRARED):
        raise ValueError(f"modality {record.modality} is neither schema.VISIBLE nor schema.INFRARED")
    if not -2 <= record.camera <= schema.MAX_CAMERA:
        raise ValueError(
            f"camera {record.camera}: cameras count from 0 to {schema.MAX_CAMERA}; unknown is -1 (query), -2 (gallery)"
        )
    outfits = record.clothes, record.instruction_clothes
    if min(outfits) < schema.UNKNOWN or max(outfits) > schema.MAX_CLOTHES:
        raise ValueError(f"clothes {record.clothes}, {record.instruction_clothes}: outfits count from 0; -1 is unknown")
    schema.pad_attributes(record.attributes)
    schema.pad_attributes(record.instruction_attributes)


def parse(data: bytes, fields: Sequence[str] = FIELDS) -> dict[str, Any]:
    """Parses the given fields of one Example.

    Returns:
      {field: value}: images as bytes (not decoded), texts as str, integers as int, sequences as tuples, attributes as
      stored (unpadded). `identity` stands for the person.

    Raises:
      ValueError: the bytes are no Example of this form.
    """
    try:
        feature = tf_example_pb2.Example.FromString(data).features.feature
        return {field: _PARSERS[field](feature[field]) for field in fields}
    except Exception as error:  # protobuf's DecodeError, an absent scalar, an unknown field name
        raise ValueError(f"not a record of this project's form ({type(error).__name__}: {error})") from error
