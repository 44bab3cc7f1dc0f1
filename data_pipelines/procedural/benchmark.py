"""The six data sets of the procedural benchmark: from a seed to records, and to shards (docs/method.md)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import zlib
from typing import Any

import numpy as np

from data_pipelines import tasks
from data_pipelines.dataset import schema
from data_pipelines.dataset.writer import BuildOptions, DatasetSpec, worker_pool, write_dataset
from data_pipelines.instructions.sentences import (
    caption,
    key_phrase,
    short_caption,
    short_phrase,
    wanted_sentence,
)
from data_pipelines.procedural import outfits, people, rows
from data_pipelines.procedural.drawing import render, scene, template

VERSIONS = {1: "1.0.0", 2: "2.0.0"}
"""Per edition, part of every seed and of the folder's name; a changed picture, row or sentence needs a new one."""
OVERLAP_TRAP = ("procedural_t2i", "procedural_trad")
"""Two training sets that share people under two names, for the leak check to find."""
NAMESPACE = "procedural"
TEST_PEOPLE = "procedural_test"
OVERLAPPING_PEOPLE = 16
TRAIN_PARAPHRASES = {1: {"li": 3, "t2i": 2}, 2: {"li": 1, "t2i": 2}}
HEAD = {1: 1.0, 2: 1.5}
"""Size of heads per edition."""


@dataclasses.dataclass(frozen=True)
class Shot:
    """The descriptor of one record: everything but the pixels and the words."""

    task: str
    scene: render.Scene
    row: rows.Row
    person: str
    file: str
    paraphrases: int


@dataclasses.dataclass(frozen=True)
class _Sitter:
    """Who is pictured: the identity (namespace `looks` and index), and its name and file stem in the data set."""

    looks: str
    index: int
    name: str
    stem: str


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The benchmark of one seed and size.

    Pictures of a training person do not change with the number of people (except those of the overlap in t2i).

    Attributes:
      seed: of everything that is drawn.
      image_size, template_size: (H, W).
      train_people, test_people: per data set.
      extras: slots of `outfits.EXTRA_SLOTS` that are added to every outfit.
      hard: cameras have gains of +-30% per channel in place of +-8%, with which colour histograms are at chance even on
        trad.
      edition: 2 draws heads half as large again, gives training people of cc and vi many outfits, and has sentences of
        three lengths; 1 is as the benchmark was first published.

    Raises:
      ValueError: fewer than two people, a picture too small to draw on, an unknown extra or edition.
    """

    seed: int = 0
    image_size: tuple[int, int] = (128, 64)
    template_size: tuple[int, int] = (64, 64)
    train_people: int = 96
    test_people: int = 64
    extras: tuple[str, ...] = ()
    hard: bool = False
    edition: int = 1

    def __post_init__(self) -> None:
        if min(self.train_people, self.test_people) < 2:
            raise ValueError("train_people and test_people must be at least 2: one person alone has no negatives")
        if min(*self.image_size, *self.template_size) < 16:
            raise ValueError(f"image_size {self.image_size} and template_size {self.template_size} must be 16 or more")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} must be 0 or more")
        if self.edition not in VERSIONS:
            raise ValueError(f"edition {self.edition} is none of {', '.join(map(str, VERSIONS))}")
        outfits.Wardrobe(self.extras)

    @property
    def version(self) -> str:
        """The version of the data sets."""
        return VERSIONS[self.edition]

    @functools.cached_property
    def wardrobe(self) -> outfits.Wardrobe:
        return outfits.Wardrobe(self.extras)

    @functools.cached_property
    def catalogue(self) -> outfits.Catalogue:
        return outfits.draw_catalogue(self.wardrobe, self.seed)

    @functools.cached_property
    def overlap(self) -> tuple[int, ...]:
        """Numbers of the trad training people who reappear under other names as the first training people of t2i."""
        return tuple(int(i) for i in self._rng(0x0E1A).permutation(self.train_people)[:OVERLAPPING_PEOPLE])

    def source(self) -> dict[str, Any]:
        """Returns what the manifest says of the pictures: every option that changes them, as JSON values."""
        return {
            "kind": "procedural",
            "seed": self.seed,
            "image_size": list(self.image_size),
            "template_size": list(self.template_size),
            "train_people": self.train_people,
            "test_people": self.test_people,
            "hard": self.hard,
            "slots": {slot.name: list(slot.values) for slot in self.wardrobe.slots},
            # Folders of the first edition do not name it.
            **({"edition": self.edition} if self.edition > 1 else {}),
        }

    def shots(self, task: str) -> dict[str, list[Shot]]:
        """Returns the descriptors of a task's data set per split, in order of person and image.

        Raises:
          ValueError: an unknown task.
        """
        number = tasks.task(task).id
        splits: dict[str, list[Shot]] = {"train": [], "query": [], "gallery": []}
        for index in range(self.train_people):
            source = task
            sitter = _Sitter(f"procedural_{task}", index, f"procedural_{task}/p{index:04}", f"p{index:04}")
            if task == "t2i" and index < len(self.overlap):
                # As people of Market-1501 in CUHK-PEDES: other pictures, another name, the source in the file name.
                source, other = "trad", self.overlap[index]
                sitter = _Sitter("procedural_trad", other, sitter.name, f"Trad/p{other:04}")
            rng = self._rng(tasks.task(source).id, 0, sitter.index)
            owned = rows.own_train(source, self.wardrobe, self.catalogue, rng, edition=self.edition)
            taken = rows.train_rows(task, owned, self._rng(number, 1, index))
            splits["train"] += self._shots(
                task, sitter, taken, TRAIN_PARAPHRASES[self.edition].get(task, 0), (number, 2, index)
            )
        wardrobes = rows.own_test(task, self.catalogue, self.test_people, self._rng(number, 3))
        for index, owned in enumerate(wardrobes):
            sitter = _Sitter(TEST_PEOPLE, index, f"{TEST_PEOPLE}/p{index:03}", f"p{index:03}")
            rng = self._rng(number, 4, index)
            query, gallery = rows.query_rows(task, owned, rng), rows.gallery_rows(task, owned, rng)
            shots = self._shots(task, sitter, [*query, *gallery], 1, (number, 5, index))
            splits["query"] += shots[: len(query)]
            splits["gallery"] += shots[len(query) :]
        return splits

    def spec(self, task: str) -> DatasetSpec[Shot]:
        """Returns the data set `procedural_<task>`. Raises ValueError for an unknown task."""
        splits = self.shots(task)
        return DatasetSpec(
            name=f"{NAMESPACE}_{task}",
            version=self.version,
            task=task,
            namespace=NAMESPACE,
            people=[shot.person for shots in splits.values() for shot in shots],
            splits=splits,
            load=self.load,
            source=self.source(),
        )

    def load(self, shot: Shot) -> schema.Record:
        """Returns the record of a shot: draws its picture, writes its sentences, adds its template."""
        row, infrared = shot.row, shot.scene.camera >= scene.VISIBLE_CAMERAS
        templates: tuple[bytes, ...] = ()
        if row.wanted is not None and tasks.task(shot.task).kind == "visual":
            templates = (_template(row.wanted, self.wardrobe, self.template_size),)
        return schema.Record(
            image=render.render_jpeg(shot.scene, self.image_size),
            file=shot.file,
            person=shot.person,
            camera=shot.scene.camera,
            clothes=self.wardrobe.number(row.outfit),
            modality=schema.INFRARED if infrared else schema.VISIBLE,
            attributes=row.outfit,
            sentences=self.sentences(shot),
            instruction_images=templates,
            instruction_clothes=schema.UNKNOWN if row.wanted is None else self.wardrobe.number(row.wanted),
            instruction_attributes=row.named,
        )

    def _key(self, *numbers: int) -> tuple[int, ...]:
        return (self.seed, *(int(part) for part in self.version.split(".")), *numbers)

    def _rng(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng(self._key(*numbers))

    def _shots(
        self, task: str, sitter: _Sitter, taken: list[rows.Row], paraphrases: int, key: tuple[int, ...]
    ) -> list[Shot]:
        person = people.draw_person(self.seed, sitter.looks, sitter.index)
        fabric = self._key(zlib.crc32(sitter.looks.encode()), sitter.index)
        return [
            Shot(
                task=task,
                scene=render.Scene(
                    person=person,
                    outfit=row.outfit,
                    wardrobe=self.wardrobe,
                    camera=row.camera,
                    seed=self.seed,
                    draw=self._key(*key, number),
                    material=(*fabric, self.wardrobe.number(row.outfit)),
                    hard=self.hard,
                    head=HEAD[self.edition],
                ),
                row=row,
                person=sitter.name,
                file=f"{sitter.stem}_c{row.camera}_{number:02}.jpg",
                paraphrases=paraphrases,
            )
            for number, row in enumerate(taken)
        ]

    def sentences(self, shot: Shot) -> tuple[str, ...]:
        """Returns paraphrases of the row's instruction, all different: captions (t2i), wanted clothes (li), or none.

        In edition 2 they are followed, in li by the clothes as a short phrase and one of them in a word or two, in
        training captions by a short one.
        """
        kind = tasks.task(shot.task)
        if shot.row.wanted is None or kind.sentence is not None or kind.kind == "visual":
            return ()
        slots = zip(self.wardrobe.slots, shot.row.named, strict=True)
        named = {slot.name: slot.values[value] for slot, value in slots if value != schema.UNKNOWN}
        person, rng = shot.scene.person, np.random.default_rng((*shot.scene.draw, 1))
        written: list[str] = []
        while len(written) < shot.paraphrases:
            if kind.kind == "caption":
                hair = people.HAIR_SHAPES[person.hair_shape], people.HAIR_COLOURS[person.hair_colour]
                text = caption(named, people.stature(person), people.girth(person), *hair, rng)
            else:
                text = wanted_sentence(named, rng)
            if text not in written:
                written.append(text)
        if self.edition == 1:
            return tuple(written)
        if kind.kind == "caption":
            return (*written, short_caption(named, rng)) if shot.paraphrases > 1 else tuple(written)
        # What the picture does not show yet is what a single word asks for.
        shown = zip(self.wardrobe.slots, shot.row.named, shot.row.outfit, strict=True)
        differing = [slot.name for slot, asked, worn in shown if asked not in (schema.UNKNOWN, worn)]
        return (*written, short_phrase(named, rng), key_phrase(named, differing or list(named), rng))


@functools.lru_cache(maxsize=2048)
def _template(outfit: outfits.Outfit, wardrobe: outfits.Wardrobe, size: tuple[int, int]) -> bytes:
    return template.template_jpeg(outfit, wardrobe, size)


def build(
    out_dir: str | os.PathLike[str], benchmark: Benchmark | None = None, options: BuildOptions | None = None
) -> list[schema.Manifest]:
    """Writes the six data sets `procedural_<task>` as shards under `out_dir`; finished ones are kept.

    Args:
      out_dir: the data folder; a data set goes to `out_dir/procedural_<task>/<version>/`.
      benchmark: what is drawn.
      options: how the builds run.

    Returns:
      The manifests, in order of the tasks.

    Raises:
      DatasetError: the folder cannot be written, or holds other data sets under these names.
    """
    benchmark, options = benchmark or Benchmark(), options or BuildOptions()
    with contextlib.ExitStack() as stack:
        if options.pool is None and options.workers != 1:
            options = dataclasses.replace(options, pool=stack.enter_context(worker_pool(options.workers)))
        return [write_dataset(out_dir, benchmark.spec(task), options) for task in tasks.TASK_NAMES]
