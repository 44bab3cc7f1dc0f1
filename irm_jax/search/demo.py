"""`search demo`: drawn people, an index of them and three queries that show what search does."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipelines import files
from data_pipelines.procedural import outfits
from data_pipelines.procedural.benchmark import Benchmark, Shot
from irm_jax import pretrained
from irm_jax.search import engines, ingest
from irm_jax.search.crops import read_crops
from irm_jax.search.index import Answer, Index
from irm_jax.search.store import SearchError

SEED, TASK, EDITION = 7, "t2i", 2
"""Seed, task and edition of the drawn people; the training sets are drawn with another seed."""
PICTURES = 4
"""Pictures per person."""
CAMERAS = ("gate", "hall", "yard", "shop", "car park", "stairs", "roof", "office")
START = datetime.datetime(2026, 1, 1, 8)
WEIGHTS = pretrained.SHIPPED / "demo"
"""The model, unless another is named."""
QUERY = "query.jpg"
MOST_PEOPLE = 100_000


@dataclasses.dataclass(frozen=True)
class Example:
    """A prepared query. wanted: column and value that a right hit has."""

    sentence: str | None
    image: str | None
    instruction: str | None
    wanted: tuple[str, str]

    def words(self) -> str:
        return self.sentence or f"the person of {self.image}, {self.instruction}"


EXAMPLES = (
    Example("a person in a red shirt", None, None, ("upper", "red")),
    Example("a person with a backpack", None, None, ("bag", "backpack")),
    Example(None, QUERY, "wearing a white shirt", ("upper", "white")),
)


def prepare(folder: Path, people: int, model: str | None) -> Index:
    """Draws people, builds or completes the index, answers the examples; returns the index.

    Raises CheckpointError if there is no model in the folder `model`, and SearchError for too few or too many people.
    """
    if not 2 <= people <= MOST_PEOPLE:
        raise SearchError(f"--people {people}: draw 2 to {MOST_PEOPLE:,} people")
    workdir = model or str(WEIGHTS)
    pictures = folder / "people"
    draw(pictures, people)
    uri = str(folder / "index")
    print(f"index: {uri}")
    table = pictures / "people.csv"
    kinds = engines.open_store(uri).about.columns if engines.exists(uri) else None
    print(ingest.build(uri, workdir, read_crops(pictures, table, kinds)).describe())
    index = Index(uri, model=workdir)
    for example in EXAMPLES:
        answer = ask(index, folder, example)
        column, value = example.wanted
        right = sum(hit.columns.get(column) == value for hit in answer)
        print(f"{example.words()}: {right} of the first {len(answer)} have {column} = {value}")
    return index


def ask(index: Index, folder: Path, example: Example, top: int = 10) -> Answer:
    """Answers one of the examples."""
    image = folder / "people" / example.image if example.image else None
    return index.query(image, example.instruction, example.sentence, top=top)


def examples(folder: Path) -> list[tuple[str | None, str | None, str | None]]:
    """The examples as the page takes them: sentence, picture, instruction."""
    place = folder / "people"
    return [(one.sentence, str(place / one.image) if one.image else None, one.instruction) for one in EXAMPLES]


def draw(folder: Path, people: int) -> None:
    """Draws `people` people, PICTURES each, with a table of where they are and what they wear; whole ones are kept."""
    table = folder / "people.csv"
    if table.exists() and table.read_text().count("\n") == people * PICTURES + 1:
        return
    folder.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(seed=SEED, train_people=2, test_people=people, edition=EDITION)
    shots = benchmark.shots(TASK)
    chosen: dict[str, list[Shot]] = {}
    for shot in shots["gallery"]:
        own = chosen.setdefault(shot.person, [])
        if len(own) < PICTURES:
            own.append(shot)
    print(f"drawing {people} people: {folder}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "person", "camera", "time", "upper", "pattern", "lower", "bag"])
    rng = np.random.default_rng(SEED)
    for number, shot in enumerate(shot for own in chosen.values() for shot in own):
        files.write_atomically(folder / shot.file, benchmark.load(shot).image)
        time = START + datetime.timedelta(seconds=int(rng.integers(3600)) + 600 * number // PICTURES)
        worn = [slot.values[value] for slot, value in zip(outfits.BASE_SLOTS, shot.row.outfit, strict=False)]
        writer.writerow([shot.file, shot.person.rpartition("/")[2], CAMERAS[shot.scene.camera], time, *worn])
    files.write_atomically(folder / QUERY, benchmark.load(_asked(shots["query"], chosen)).image)
    files.write_atomically(table, text.getvalue())


def _asked(queries: Sequence[Shot], gallery: Mapping[str, Sequence[Shot]]) -> Shot:
    """The prepared query: the first picture of a person in another colour than white whom the gallery has in white;
    the first picture of all where there is none."""

    def white(shot: Shot) -> bool:
        return outfits.UPPER.values[shot.row.outfit[0]] == "white"

    found = (one for one in queries if not white(one) and any(map(white, gallery[one.person])))
    return next(found, queries[0])
