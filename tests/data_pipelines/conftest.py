"""Tiny built data sets for the pipeline's tests: noise images, real shards."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import simplejpeg

from data_pipelines.dataset import schema
from data_pipelines.dataset.reader import Dataset, open_dataset
from data_pipelines.dataset.writer import BuildOptions, DatasetSpec, write_dataset


def _jpeg(seed: int, height: int, width: int) -> bytes:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (4, 2, 3), np.uint8)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(base.repeat(height // 4, 0).repeat(width // 2, 1)))


def make_record(descriptor: tuple[str, str, int, int, int, int]) -> schema.Record:
    """Makes a record of (task, person, outfit, image number, modality, seed)."""
    task, person, outfit, number, modality, seed = descriptor
    attributes = (outfit, outfit + 1) if task in ("li", "ctcc") else ()
    return schema.Record(
        image=_jpeg(seed, 32, 16),
        file=f"{person.replace('/', '_')}_o{outfit}_{number}.jpg",
        person=person,
        camera=number % 3,
        clothes=outfit,
        modality=modality,
        attributes=attributes,
        sentences={
            "li": tuple(f"{person} wears outfit number {outfit} said {way}" for way in ("so", "thus")),
            "t2i": (f"image {number} of {person}", f"another caption of image {number} of {person}"),
        }.get(task, ()),
        instruction_images=(_jpeg(1000 + outfit, 16, 16),) if task == "ctcc" else (),
        instruction_clothes=outfit if task in ("li", "ctcc") else schema.UNKNOWN,
        instruction_attributes=attributes[:1] if task == "li" else attributes,
    )


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Mapping[str, Dataset]]:
    """Returns (folder, open data sets by name): tiny_<task> for the six tasks.

    Each has 9 training people with 3 outfits x 3 images (vi: 2 of 3 images infrared). Person 0 is the same in every
    set; people of the query split are not in train.
    """
    root = tmp_path_factory.mktemp("tiny")
    for seed, task in enumerate(("trad", "cc", "ctcc", "vi", "t2i", "li")):
        people = ["shared/p0", *[f"{task}/p{i}" for i in range(1, 9)]]
        train = [
            (
                task,
                person,
                outfit,
                number,
                int(task == "vi" and number > 0),
                10000 * seed + 100 * p + 10 * outfit + number,
            )
            for p, person in enumerate(people)
            for outfit in range(3)
            for number in range(3)
        ]
        query = [(task, f"{task}/q0", 0, number, 0, number) for number in range(5)]
        spec = DatasetSpec(
            name=f"tiny_{task}",
            version="1.0.0",
            task=task,
            namespace=task,
            people=[*people, f"{task}/q0"],
            splits={"train": train, "query": query},
            load=make_record,
            source={},
            records_per_shard=40,
        )
        write_dataset(root, spec, BuildOptions(workers=1, progress=False))
    return root, {f"tiny_{t}": open_dataset(root, f"tiny_{t}") for t in ("trad", "cc", "ctcc", "vi", "t2i", "li")}


@pytest.fixture(scope="session")
def make_index() -> Callable[..., schema.Index]:
    """Returns f(identity, **columns): an Index with the given columns, the others filled with plain values."""

    def make(identity: np.ndarray, **columns: np.ndarray) -> schema.Index:
        n = len(identity)
        values = {
            "identity": identity.astype(np.int32),
            "camera": np.zeros(n, np.int32),
            "clothes": np.zeros(n, np.int32),
            "modality": np.zeros(n, np.int8),
            "attributes": np.full((n, schema.ATTRIBUTE_SLOTS), -1, np.int16),
            "instruction_clothes": np.full(n, -1, np.int32),
            "instruction_attributes": np.full((n, schema.ATTRIBUTE_SLOTS), -1, np.int16),
            "sentence_count": np.ones(n, np.int16),
            "instruction_image_count": np.ones(n, np.int16),
            "instruction_key": np.zeros(n, np.uint32),
            "content": np.arange(n, dtype=np.uint64),
            "file": np.array([f"{i}.jpg" for i in range(n)]),
            "shard": np.zeros(n, np.int32),
            "offset": np.arange(n, dtype=np.int32),
        }
        return schema.Index({**values, **columns})

    return make
